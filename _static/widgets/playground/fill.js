// The reader's own sentence with a hole in it, filled by masked diffusion: what it is surest of comes first.
(() => {
  const page = (window.postx.playground ??= {});
  const MASK = 256;
  page.fill = ({ filler, hole: [before, after] }) => {
    const { make } = page;
    const [left, right] = [before, after].map((value) => make("input", { type: "text", value, maxLength: 120 }));
    const size = make("input", { type: "number", min: 1, max: 60, value: 18 });
    const out = make("pre", { className: "pp-out", tabIndex: 0, ariaLabel: "The text as it is filled" });
    const said = make("output", { className: "pp-said", ariaLive: "polite" });
    const view = make("div", { hidden: true }, out, said);
    const holes = () => Math.max(1, Math.min(60, Math.round(Number(size.value)) || 18));
    let [reader, start, n] = [null, 0, 0];

    // Bytes of the hole are marked; those still hidden are a bar.
    const draw = (ids) => {
      const [head, middle, tail] = [ids.slice(0, start), ids.slice(start, start + n), ids.slice(start + n)];
      const inside = middle.map((id) => (id === MASK ? "▁" : page.text([id]))).join("");
      out.replaceChildren(page.text(head), make("mark", {}, inside), page.text(tail));
    };
    const step = ({ ids, step: at, steps }) => {
      draw(ids);
      if (at < steps) return;
      said.textContent = `Filled in ${steps} steps: “${page.text(ids.slice(start, start + n))}”.`;
      again("Fill the hole");
    };
    const failed = (words) => {
      said.textContent = `The model stopped: ${words}`;
      reader = null;
      again();
    };
    const run = async () => {
      said.textContent = "";
      view.hidden = false;
      n = holes(); // as it is now: the reader may change it meanwhile
      const [head, tail] = [left, right].map((input) => page.bytes(input.value));
      start = head.length;
      try {
        reader ??= await page.reader(filler.id, { step, failed });
      } catch (error) {
        said.textContent = `Nothing was loaded: ${error.message}.`;
        return again();
      }
      const ids = [...head, ...Array(n).fill(MASK), ...tail];
      draw(ids);
      reader.ask("fill", { ids, steps: n });
    };
    const { go, again } = page.once(`Fill the hole (${page.megabytes(filler.bytes)})`, run);
    return make("section", { className: "pp-piece", ariaLabel: "Fill the middle" },
      make("h2", {}, "Fill the middle, by diffusion"), make("label", { className: "pp-text" }, "Before the hole", left),
      make("div", { className: "pp-write" }, make("label", {}, "bytes in the hole ", size)),
      make("label", { className: "pp-text" }, "After the hole", right), go, view);
  };
})();
