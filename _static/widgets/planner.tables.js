// What the planner says in HTML, and the address that holds its state.
postx.planner ??= {};

postx.planner.escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

postx.planner.answer = (data, found, { batch }, { price }, verdicts) => {
  const { three, say, money, binds } = postx.planner;
  const card = (value, words) => `<div><strong>${value}</strong> ${words}</div>`;
  const fits = found.total_bytes <= found.usable;
  return [
    card(
      fits ? "Fits" : "Does not fit",
      fits
        ? `${say(data.units.bytes, found.total_bytes)} of ${say(data.units.bytes, found.usable)}`
        : `${say(data.units.bytes, found.total_bytes)}, and ${say(data.units.bytes, found.usable)} can be used`,
    ),
    card(
      three(found.tokens_a_second),
      `tokens a second at most${batch > 1 ? `, ${three(found.tokens_a_second / batch)} for each user` : ""}` +
        (fits ? "" : ", if it fitted"),
    ),
    card(say(data.units.seconds, found.prompt_seconds), "at least to read one text"),
    price ? card(money(found.written_cost), "at least for a million written tokens") : "",
    card(binds(found), "is what binds"),
    `<div><button type="button"><strong>${verdicts.filter(({ reasons }) => !reasons.length).length} of ${verdicts.length}</strong>
      models do this</button></div>`,
  ].join("");
};

postx.planner.key = (data, found) =>
  ["weight", "cache", "state"]
    .map((name) => {
      const words = name === "weight" ? "weights" : name;
      return `<span><i class="pl-${words}"></i>${words} ${postx.planner.say(data.units.bytes, found[`${name}_bytes`])}</span>`;
    })
    .join("");

postx.planner.sums = (data, found, { batch, context }, { price }) => {
  const { say, three, whole, money } = postx.planner;
  const { bytes, flops, seconds } = data.units;
  const line = (what, name, rate, cost) =>
    `<tr><th scope="row">${what}</th><td data-what="arithmetic">${say(flops, found[`${name}_flops`])}</td>
      <td data-what="bytes">${say(bytes, found[`${name}_bytes`])}</td>
      <td data-what="at least">${say(seconds, found[`${name}_seconds`])}</td>
      <td data-what="tokens/s at most">${three(rate)}</td>
      <td data-what="a million tokens">${price ? money(cost) : "no price"}</td></tr>`;
  return `<table><thead><tr><th scope="col">Work</th><th scope="col">arithmetic</th><th scope="col">bytes</th>
    <th scope="col">at least</th><th scope="col">tokens/s at most</th><th scope="col">a million tokens</th></tr></thead><tbody>
    ${line(`reading ${whole(context)} tokens`, "prompt", context / found.prompt_seconds, found.prompt_cost)}
    ${line(`writing ${batch > 1 ? `one token for each of ${whole(batch)}` : "one token"}`, "token", found.tokens_a_second, found.written_cost)}
    </tbody></table>`;
};

postx.planner.quality = (data, published, device, told) => {
  const { escape, three, whole } = postx.planner;
  const rows = [];
  const add = (what, value, row) =>
    rows.push(
      `<tr><th scope="row">${what}</th><td>${escape(value)}</td><td>${row ? escape(`${row.source}, ${row.date}`) : ""}</td></tr>`,
    );
  for (const kind of ["recall", "benchmark", "perplexity", "compression"]) {
    const found = published ? published.quality.filter((row) => row.kind === kind) : [];
    found.forEach((row) => add(kind, row.said, row));
    if (!found.length && ["recall", "benchmark"].includes(kind)) add(kind, data.none);
  }
  if (published) {
    const { length } = published;
    add("longest text", length ? `${whole(length.tokens)} tokens` : data.unknown, length);
    const speeds = data.measured.filter((row) => row.model === published.name && row.device === device);
    speeds.forEach((row) =>
      add(
        "measured speed",
        `${three(row.tokens_a_second)} tokens/s: ${three(row.weight_bits)} bits, 1 user, ${whole(row.context)} tokens`,
        row,
      ),
    );
    const others = [...new Set(data.measured.filter((row) => row.model === published.name).map((row) => row.device))];
    if (!speeds.length) add("measured speed", data.none + (others.length ? ` here; on ${others.join("; ")}` : ""));
    add("served by", Object.entries(published.served).map((pair) => pair.join(": ")).join("; "));
    add("layers", "counted weight by weight", published);
  }
  add("device", told.note ?? "its published ceilings", told);
  return `<table><thead><tr><th scope="col">Published</th><th scope="col">figure</th>
    <th scope="col">source (rows last checked ${data.checked})</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
};

postx.planner.count = (data, verdicts, { batch, context }, { memory }, recall) => {
  const { say, whole } = postx.planner;
  const good = verdicts.filter(({ reasons }) => !reasons.length).length;
  return (
    `${say(data.units.bytes, memory)}, ${whole(batch)} user${batch > 1 ? "s" : ""}, ${whole(context)} tokens each` +
    `${recall ? ", must recall" : ""}: ${good} of ${verdicts.length} models survive, weights at the most of ` +
    `${data.tried.join(", ")} bits that fit.`
  );
};

postx.planner.table = (data, verdicts) => {
  const { escape, say, three, money } = postx.planner;
  const low = (row) => (["perplexity", "compression"].includes(row.kind) ? `${row.kind}, ${row.said}` : row.said);
  const figures = ({ quality }, ...kinds) =>
    escape(quality.filter((row) => kinds.includes(row.kind)).map(low).join("; ") || data.none);
  const name = (model) => `<button type="button" data-model="${model.name}">${model.name}</button>`;
  const good = verdicts
    .filter(({ reasons }) => !reasons.length)
    .map(
      ({ model, bits, found }) => `<tr><th scope="row">${name(model)}</th>
        <td data-what="memory">${say(data.units.bytes, found.total_bytes)} at ${three(bits)} bits</td>
        <td data-what="tokens/s">${three(found.tokens_a_second)}</td>
        <td data-what="a million">${found.written_cost ? money(found.written_cost) : "no price"}</td>
        <td data-what="longest text">${model.length ? postx.planner.short(model.length.tokens) : data.unknown}</td>
        <td data-what="recall">${figures(model, "recall")}</td>
        <td data-what="knowledge">${figures(model, "benchmark", "perplexity", "compression")}</td></tr>`,
    );
  const bad = verdicts
    .filter(({ reasons }) => reasons.length)
    .map(
      ({ model, reasons }) => `<tr class="pl-out"><th scope="row">${name(model)}</th>
        <td colspan="6">${reasons.map(escape).join("; ")}</td></tr>`,
    );
  return `<table><thead><tr><th scope="col">Model</th><th scope="col">memory</th>
    <th scope="col">tokens/s at most</th><th scope="col">a million written</th><th scope="col">longest text</th><th scope="col">recall</th>
    <th scope="col">knowledge, perplexity</th></tr></thead><tbody>${[...good, ...bad].join("")}</tbody></table>`;
};

// The state in the address: #model=...&context=65536, only what is not as usual(name). read() is false where it says none.
postx.planner.address = (input, ranges, fresh, usual) => {
  const names = Object.keys(input).filter((name) => name !== "brush");
  const stops = (name) => ranges.find((each) => each.name === name)?.stops;
  const box = (name) => input[name].type === "checkbox";
  const held = (name) => String(stops(name)?.[input[name].value] ?? (box(name) ? Number(input[name].checked) : input[name].value));
  const start = Object.fromEntries(names.map((name) => [name, held(name)]));
  const put = (name, value) => {
    if (stops(name)) {
      const far = stops(name).map((stop) => Math.abs(Math.log(stop / value)));
      if (value > 0) input[name].value = far.indexOf(Math.min(...far));
    } else if (box(name)) input[name].checked = value === "1";
    else if (!input[name].options || [...input[name].options].some((each) => each.value === value)) input[name].value = value;
  };
  let waits;
  return {
    read: () => {
      const told = new URLSearchParams(location.hash.slice(1));
      if (!names.some((name) => told.has(name))) return false;
      const first = ["model", "width"];
      first.forEach((name) => put(name, told.get(name) ?? start[name]));
      fresh();
      names.filter((name) => !first.includes(name)).forEach((name) => put(name, told.get(name) ?? usual(name) ?? start[name]));
      return true;
    },
    write: () => {
      clearTimeout(waits);
      waits = setTimeout(() => {
        const told = names.filter((name) => held(name) !== (usual(name) ?? start[name]));
        const text = new URLSearchParams(told.map((name) => [name, held(name)])).toString();
        history.replaceState(null, "", `#${text.replace(/%28/g, "(").replace(/%29/g, ")")}`);
      }, 200);
    },
  };
};
