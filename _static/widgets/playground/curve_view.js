// Bits a byte, averaged over the last 64 bytes, along the text; a line for each model, each named at its end.
(() => {
  const page = (window.postx.playground ??= {});
  const [HIGH, TOP, OVER] = [190, 8, 64];

  page.means = (bits, over = OVER) => {
    let sum = 0;
    return bits.map((loss, i) => (sum += loss - (bits[i - over] ?? 0)) / Math.min(i + 1, over));
  };

  page.curveView = (names) => {
    const { make } = page;
    const svg = make("svg:svg", { viewBox: `0 0 600 ${HIGH}`, role: "img", class: "pp-curve", "aria-label": "Bits a byte along the text: nothing is read yet" });
    const width = page.widthOf(svg);
    const y = (bits) => HIGH - 22 - (Math.min(bits, TOP) / TOP) * (HIGH - 30);
    // trained: bytes of the texts that the models were trained on.
    const show = (lines, trained) => {
      const wide = Math.max(300, Math.min(600, width())); // so that words are as large on a phone
      svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
      const room = (name) => 38 + 8 * names[name].length; // for a line's words, which one line alone has above it
      const several = Object.keys(lines).length > 1;
      const right = wide - (several ? Math.max(...Object.keys(lines).map(room)) : 12);
      const longest = Math.max(1.17 * trained, ...Object.values(lines).map((bits) => bits.length));
      const x = (i) => 24 + (i / longest) * (right - 24);
      const text = (at, up, words, more = {}) => make("svg:text", { x: at, y: up, ...more }, words);
      const drawn = [0, 2, 4, 6, 8].flatMap((bits) => [
        make("svg:line", { x1: 24, x2: right, y1: y(bits), y2: y(bits), class: "pp-grid" }),
        text(18, y(bits) + 4, String(bits), { "text-anchor": "end" }),
      ]);
      drawn.push(text(30, 16, "bits a byte, over the last 64"));
      drawn.push(make("svg:line", { x1: x(trained), x2: x(trained), y1: 6, y2: HIGH - 22, class: "pp-trained" }),
        text(Math.max(78, Math.min(x(trained), wide - 82)), HIGH - 7, `trained on ${trained.toLocaleString("en-US")} bytes`, { "text-anchor": "middle" }));
      const ends = [];
      const said = Object.entries(lines).filter(([, bits]) => bits.length > 16).map(([name, bits]) => {
        const means = page.means(bits);
        const step = Math.max(1, Math.floor(means.length / 300));
        const points = [];
        for (let i = 16; i < means.length; i += step) points.push(`${x(i).toFixed(1)},${y(means[i]).toFixed(1)}`);
        points.push(`${x(means.length - 1).toFixed(1)},${y(means.at(-1)).toFixed(1)}`);
        drawn.push(make("svg:polyline", { points: points.join(" "), class: `pp-line pp-of-${name}` }));
        const last = means.at(-1);
        ends.push([y(last) + 4, name, last, x(means.length)]);
        return `${names[name]} ${last.toFixed(1)}`;
      });
      ends.sort((a, b) => a[0] - b[0]).forEach((end, i) => {
        if (i) end[0] = Math.max(end[0], ends[i - 1][0] + 15); // labels do not lie on each other
        const at = several ? [end[3] + 5, end[0]] : [Math.min(end[3] + 5, wide - room(end[1])), end[0] - 14];
        drawn.push(text(...at, `${names[end[1]]} ${end[2].toFixed(1)}`, { class: `pp-word pp-of-${end[1]}` }));
      });
      svg.replaceChildren(...drawn);
      svg.setAttribute("aria-label", `Bits a byte over the last 64 bytes: ${said.join(", ") || "nothing is read yet"}`);
    };
    return { box: svg, show };
  };
})();
