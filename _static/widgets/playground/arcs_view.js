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
    const svg = make("svg:svg", { role: "img", class: "pp-arcs", "aria-label": "Arcs from the cursor: nothing is read yet" });
    const width = page.widthOf(svg);
    // Letters lie on a strip that is pushed on, so that a byte changes one of them; arcs stay and change in strength.
    let [letters, arcs, strip, last] = [[], [], null, null];
    const lay = (most) => {
      svg.setAttribute("viewBox", `0 0 ${most * STEP} ${HIGH + 22}`);
      const end = (most - 0.5) * STEP;
      letters = Array.from({ length: most }, () => make("svg:text", { y: HIGH + 14, "text-anchor": "middle" }));
      strip = make("svg:g", {}, ...letters);
      arcs = Array.from({ length: most - 1 }, (_, k) => {
        const x = (k + 0.5) * STEP;
        const rise = Math.min(HIGH - 6, 12 + (end - x) * 0.3);
        return make("svg:path", { d: `M${end} ${HIGH}C${end} ${HIGH - rise} ${x} ${HIGH - rise} ${x} ${HIGH}` });
      });
      svg.replaceChildren(strip, ...arcs);
    };
    const letter = (i, words, most) => {
      const own = letters[((i % most) + most) % most];
      if (own.at !== i) own.setAttribute("x", ((own.at = i) + 0.5) * STEP);
      page.say(own, words);
      return own;
    };
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
        if (letters.length !== most) lay(most);
        const first = p.length - most; // below 0 where the strip is longer than the text
        strip.setAttribute("transform", `translate(${-first * STEP})`);
        last?.classList.remove("pp-asks");
        for (let k = 0; k < most; k++) {
          const i = first + k;
          last = letter(i, i > 0 ? page.name(bytes[i - 1]) : i ? "" : "▷", most);
          if (k === most - 1) continue;
          const share = i < 0 || p[i] < 0.004 ? 0 : p[i];
          const look = share ? `stroke-width: ${(0.6 + 7 * share).toFixed(1)}; stroke-opacity: ${Math.min(1, 0.25 + share).toFixed(2)}` : "display: none";
          if (arcs[k].look !== look) arcs[k].style.cssText = arcs[k].look = look;
        }
        last.classList.add("pp-asks");
        words.textContent = page.lookWords(Array.from(p), bytes, most);
        svg.setAttribute("aria-label", `Arcs from the cursor. ${words.textContent}`);
      },
    };
  };
})();
