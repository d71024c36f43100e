// What the model would write at the cursor: the eight likeliest bytes, as bars with their share.
(() => {
  const page = (window.postx.playground ??= {});
  page.nextView = () => {
    const { make } = page;
    const bars = Array.from({ length: 8 }, () => {
      const [name, share] = [make("b"), make("span")];
      return { bar: make("li", {}, name, share), name, share };
    });
    const list = make("ol", { className: "pp-next" }, ...bars.map(({ bar }) => bar));
    return {
      box: make("section", { ariaLabel: "What comes next" }, make("h2", {}, "At the cursor it would write"), list),
      show(next) {
        next.forEach(([byte, p], i) => {
          page.say(bars[i].name, page.name(byte));
          page.say(bars[i].share, ` ${page.percent(p)}`);
          bars[i].bar.style.setProperty("--p", `${(100 * p).toFixed(1)}%`);
        });
      },
    };
  };
})();
