// Where one head of attention looks from the cursor: arcs over the last bytes, as thick as the share they get.
(() => {
  const page = (window.postx.playground ??= {});
  const [STEP, HIGH] = [14, 92];

  // Words for a look p over the places before the cursor. Source 0 is the byte 0 before the text.
  page.lookWords = (p, bytes, most) => {
    const near = p.slice(-most).reduce((a, b) => a + b, 0);
    const best = p.indexOf(p.reduce((a, b) => Math.max(a, b)));
    const back = p.length - 1 - best;
    const what = best ? `“${page.name(bytes[best - 1])}”, ${back} ${back === 1 ? "byte" : "bytes"} back` : "the start of the text";
    const far = p.length > most ? ` In all, ${page.percent(1 - near)} goes to what is further back than this strip.` : "";
    return `Most, ${page.percent(p[best])}, goes to ${what}.${far}`;
  };

  page.arcsView = (choose) => {
    const { make } = page;
    const picker = page.picker("Attention head", [], choose);
    const svg = make("svg:svg", { viewBox: `0 0 560 ${HIGH + 22}`, role: "img", class: "pp-arcs", "aria-label": "Arcs from the cursor: nothing is read yet" });
    const width = page.widthOf(svg);
    const words = make("p", { className: "pp-words" });
    const box = make("section", { ariaLabel: "Attention" }, make("h2", {}, "Where attention looks from the cursor"), picker.label, svg, words);
    return {
      box,
      picker: picker.select,
      offer(heads) {
        box.hidden = heads.length === 0;
        picker.select.replaceChildren(...heads.map(([key, name]) => make("option", { value: key }, name)));
      },
      show(p, bytes) {
        const most = width() < 500 ? 25 : 40; // places on the strip
        svg.setAttribute("viewBox", `0 0 ${most * STEP} ${HIGH + 22}`);
        const first = Math.max(0, p.length - most);
        const x = (i) => (i - first + 0.5) * STEP + (most - Math.min(most, p.length)) * STEP;
        const end = x(p.length - 1);
        const parts = [];
        for (let i = first; i < p.length; i++) {
          const name = i ? page.name(bytes[i - 1]) : "▷";
          parts.push(make("svg:text", { x: x(i), y: HIGH + 14, "text-anchor": "middle", class: i === p.length - 1 ? "pp-asks" : "" }, name));
          if (i === p.length - 1 || p[i] < 0.004) continue;
          const rise = Math.min(HIGH - 6, 12 + (end - x(i)) * 0.3);
          parts.push(make("svg:path", { d: `M${end} ${HIGH}C${end} ${HIGH - rise} ${x(i)} ${HIGH - rise} ${x(i)} ${HIGH}`,
            "stroke-width": (0.6 + 7 * p[i]).toFixed(2), "stroke-opacity": Math.min(1, 0.25 + p[i]).toFixed(2) }));
        }
        svg.replaceChildren(...parts);
        words.textContent = page.lookWords(Array.from(p), bytes, most);
        svg.setAttribute("aria-label", `Arcs from the cursor. ${words.textContent}`);
      },
    };
  };
})();
