// The two pictures of the planner: memory against the device's, and speed against the length of the text.
postx.planner ??= {};

postx.planner.svg = (width, height, label, parts) =>
  `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}">${parts.join("")}</svg>`;

postx.planner.memory = (data, found, device) => {
  const { say, three, svg } = postx.planner;
  const size = (x) => say(data.units.bytes, x);
  const [left, width, top, height] = [2, 396, 16, 26];
  const most = Math.max(found.total_bytes, device.memory);
  const scale = width / most;
  let at = left;
  const bars = [
    ["weight_bytes", "weights"],
    ["cache_bytes", "cache"],
    ["state_bytes", "state"],
  ].map(([key, name]) => {
    const bar = `<rect class="pl-${name}" x="${at}" y="${top}" width="${found[key] * scale}" height="${height}"/>`;
    at += found[key] * scale;
    return bar;
  });
  const edge = left + found.usable * scale;
  const end = edge > width / 2;
  return svg(
    400,
    50,
    `Memory: weights ${size(found.weight_bytes)}, cache ${size(found.cache_bytes)}, state ${size(found.state_bytes)}; ` +
      `a line at the ${size(found.usable)} that can be used of ${size(device.memory)}.`,
    [
      `<rect class="pl-room" x="${left}" y="${top}" width="${device.memory * scale}" height="${height}"/>`,
      ...bars,
      `<line class="pl-edge" x1="${edge}" x2="${edge}" y1="${top - 4}" y2="${top + height + 4}"/>`,
      `<text x="${edge + (end ? -4 : 4)}" y="11" text-anchor="${end ? "end" : "start"}">` +
        `${size(found.usable)}, ${three(100 * device.share)}% of the device</text>`,
    ],
  );
};

// speed(context) -> {tokens_a_second, fits}; dots: published measurements at one user.
postx.planner.speed = (data, speed, asked, dots) => {
  const { three, svg, short } = postx.planner;
  const [left, right, top, bottom] = [46, 392, 18, 178];
  const ends = [data.contexts[0], data.contexts[data.contexts.length - 1]];
  const steps = [...Array(61).keys()].map((i) => ends[0] * (ends[1] / ends[0]) ** (i / 60));
  const curve = steps.map((context) => ({ context, ...speed(context) }));
  const all = [...curve, ...dots].map((point) => point.tokens_a_second);
  const low = Math.floor(Math.log10(Math.min(...all)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...all))), low + 1);
  const x = (context) => left + ((right - left) * Math.log(context / ends[0])) / Math.log(ends[1] / ends[0]);
  const y = (rate) => bottom - ((bottom - top) * (Math.log10(rate) - low)) / (high - low);
  const line = (points) => points.map((p) => `${x(p.context).toFixed(1)},${y(p.tokens_a_second).toFixed(1)}`).join(" ");
  const last = curve.findIndex((point) => !point.fits);
  const split = last < 0 ? curve.length : last;
  const marks = [1024, 32768, 1048576].map(
    (n) => `<text x="${x(n)}" y="${bottom + 15}" text-anchor="${n > ends[0] ? "middle" : "start"}">${short(n)}</text>`,
  );
  const every = Math.ceil((high - low) / 5);
  for (let power = low; power <= high; power += every) {
    const at = y(10 ** power);
    marks.push(
      `<line class="pl-grid" x1="${left}" x2="${right}" y1="${at}" y2="${at}"/>`,
      `<text x="${left - 5}" y="${at + 4}" text-anchor="end">${power < 6 ? three(10 ** power) : `10^${power}`}</text>`,
    );
  }
  const now = speed(asked.context);
  const published = dots.map(
    (dot) =>
      `<circle class="pl-dot" r="4" cx="${x(Math.max(dot.context, ends[0]))}" cy="${y(dot.tokens_a_second)}"/>`,
  );
  if (dots.length)
    published.push(
      `<circle class="pl-dot" r="4" cx="${left + 12}" cy="${bottom - 12}"/>` +
        `<text x="${left + 22}" y="${bottom - 8}">measured: ${dots.map((dot) => three(dot.tokens_a_second)).join(", ")}</text>`,
    );
  return svg(
    400,
    200,
    `Speed against the length of the text: at most ${three(curve[0].tokens_a_second)} tokens a second at 1k, ` +
      `${three(now.tokens_a_second)} at ${short(asked.context)}, ${three(curve[60].tokens_a_second)} at 10M` +
      (split < curve.length ? `; from ${short(curve[split].context)} on it does not fit` : "") +
      `; ${dots.length ? `${dots.length} published measurements beside it` : "no published measurement"}.`,
    [
      ...marks,
      `<text x="${left}" y="11">tokens a second, at most</text>`,
      `<polyline class="pl-floor" points="${line(curve.slice(0, split))}"/>`,
      `<polyline class="pl-floor pl-beyond" points="${line(curve.slice(Math.max(0, split - 1)))}"/>`,
      `<circle class="pl-now" r="5" cx="${x(asked.context)}" cy="${y(now.tokens_a_second)}"/>`,
      ...published,
    ],
  );
};

// 65536 -> 64k, 10485760 -> 10M
postx.planner.short = (n) =>
  n >= 1048576 ? `${postx.planner.three(n / 1048576)}M` : n >= 1024 ? `${postx.planner.three(n / 1024)}k` : `${n}`;
