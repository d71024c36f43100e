// Three models read one text that is longer than those they were trained on; each in a worker of its own.
(() => {
  const page = (window.postx.playground ??= {});
  page.race = ({ models, racers, long }) => {
    const { make } = page;
    const files = racers.map((name) => [name, models[name].files["4"]]);
    const total = files.reduce((sum, [, { bytes }]) => sum + bytes, 0);
    const names = Object.fromEntries(racers.map((name) => [name, models[name].name]));
    const curve = page.curveView(names);
    const said = make("output", { className: "pp-said", ariaLive: "polite" });
    const view = make("div", { hidden: true }, curve.box, said);
    const bytes = Uint8Array.from(page.bytes(long));
    const trained = models[racers[0]].trained;
    const lines = {};
    let running = [];

    const run = async () => {
      running.splice(0).forEach((reader) => reader.end());
      said.textContent = "";
      view.hidden = false;
      let left = files.length;
      for (const [name, { id }] of files) {
        lines[name] = [];
        const rows = ({ from, rows: news, busy }) => {
          lines[name].splice(from, Infinity, ...news.map(([, bits]) => bits));
          curve.show(lines, trained);
          if (busy || --left) return;
          again("Run it again");
          said.textContent = `After ${bytes.length.toLocaleString("en-US")} bytes, bits a byte over the last 64: ${racers.map((each) => `${names[each]} ${page.means(lines[each]).at(-1).toFixed(1)}`).join(", ")}.`;
        };
        try {
          const failed = (words) => {
            said.textContent = `${names[name]} stopped: ${words}`;
            again();
          };
          const reader = await page.reader(id, { rows, failed });
          running.push(reader);
          reader.ask("read", { bytes });
        } catch (error) {
          said.textContent = `Nothing was loaded: ${error.message}.`;
          return again();
        }
      }
    };
    const { go, again } = page.once(`Let three models read ${bytes.length.toLocaleString("en-US")} bytes (${page.megabytes(total)})`, run);
    return make("section", { className: "pp-piece", ariaLabel: "Longer than it was trained for" },
      make("h2", {}, "Longer than they were trained for"), go, view);
  };
})();
