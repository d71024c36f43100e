// One model at two widths goes on from the same words, at temperature 0; where the second leaves the first is marked.
(() => {
  const page = (window.postx.playground ??= {});
  const WRITE = 160;
  page.beside = ({ models, first, prompt }) => {
    const { make } = page;
    const files = ["4", "2"].map((bits) => models[first].files[bits]);
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
    const box = make("input", { type: "text", value: prompt, maxLength: 200 });
    const outs = files.map(() => make("pre", { className: "pp-out", tabIndex: 0 }));
    const said = make("output", { className: "pp-said", ariaLive: "polite" });
    const view = make("div", { hidden: true }, make("div", { className: "pp-pair" },
      ...outs.map((out, i) => make("div", {}, make("h3", {}, files[i].name), out))), said);
    let readers = null;

    const run = async () => {
      said.textContent = "";
      view.hidden = false;
      const start = Uint8Array.from(page.bytes(box.value));
      const texts = files.map(() => []);
      let left = files.length;
      const rows = (i) => ({ from, rows: news, busy }) => {
        texts[i].splice(from, Infinity, ...news.map(([byte]) => byte));
        outs[i].textContent = page.text(texts[i]);
        if (busy || texts[i].length < start.length + WRITE || --left) return;
        again(words);
        const apart = texts[0].findIndex((byte, at) => byte !== texts[1][at]);
        const after = apart - start.length;
        said.textContent = apart < 0 ? `The same ${WRITE} bytes.` : after ? `They part after ${after} ${after === 1 ? "byte" : "bytes"}.` : "They part at once.";
        if (apart >= 0) texts.forEach((text, at) => outs[at].replaceChildren(page.text(text.slice(0, apart)), make("mark", {}, page.text(text.slice(apart)))));
      };
      try {
        const failed = (why) => {
          said.textContent = `A model stopped: ${why}`;
          readers = null;
          again();
        };
        const on = files.map(() => ({ failed }));
        readers ??= await Promise.all(files.map(({ id }, i) => page.reader(id, on[i]).then((reader) => [reader, on[i]])));
      } catch (error) {
        said.textContent = `Nothing was loaded: ${error.message}.`;
        return again();
      }
      readers.forEach(([reader, on], i) => {
        on.rows = rows(i);
        reader.ask("read", { bytes: new Uint8Array() });
        reader.ask("read", { bytes: start });
        reader.ask("write", { n: WRITE, temperature: 0, seed: 0 });
      });
    };
    const words = `Let both write ${WRITE} bytes`;
    const { go, again } = page.once(`${words} (${page.megabytes(total)})`, run);
    return make("section", { className: "pp-piece", ariaLabel: "At 4 bits and at 2" },
      make("h2", {}, `The ${models[first].name} at 4 bits and at 2`), make("label", { className: "pp-text" }, "They go on from", box), go, view);
  };
})();
