// What the model would write at the cursor: the eight likeliest bytes, as bars with their share.
(() => {
  const page = (window.postx.playground ??= {});
  page.nextView = () => {
    const { make } = page;
    const list = make("ol", { className: "pp-next" });
    return {
      box: make("section", { ariaLabel: "What comes next" }, make("h2", {}, "At the cursor it would write"), list),
      show(next) {
        list.replaceChildren(...next.map(([byte, p]) => {
          const bar = make("li", {}, make("b", {}, page.name(byte)), make("span", {}, ` ${page.percent(p)}`));
          bar.style.setProperty("--p", `${100 * p}%`);
          return bar;
        }));
      },
    };
  };
})();
