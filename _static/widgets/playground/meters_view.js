// What has to be remembered between two bytes: a cache that grows with the text, and a state that does not.
(() => {
  const page = (window.postx.playground ??= {});
  page.metersView = () => {
    const { make } = page;
    const parts = [["cache", "Cache (attention): grows with the text"], ["state", "State (tables): stays as it is"]];
    const lines = Object.fromEntries(parts.map(([key, words]) => {
      const [bar, value] = [make("span", { className: `pp-bar pp-${key}` }), make("output", {}, "0 KiB")];
      return [key, { bar, value, words }];
    }));
    const rows = Object.values(lines).map(({ bar, value, words }) =>
      make("div", { className: "pp-meter" }, make("span", {}, words), value, make("div", { className: "pp-rail" }, bar)));
    const words = make("p", { className: "pp-words" });
    return {
      box: make("section", { ariaLabel: "Memory" }, make("h2", {}, "Memory between two bytes"), ...rows, words),
      show({ cache, state }) {
        const full = Math.max(1024 * 1024, cache, state); // the rail is 1 MiB long, or as long as the longest bar
        page.say(words, `A full bar is ${page.kibibytes(full)}, in numbers of 32 bits.`);
        for (const [key, bytes] of [["cache", cache], ["state", state]]) {
          page.say(lines[key].value, page.kibibytes(bytes));
          lines[key].bar.style.width = `${(100 * bytes) / full}%`;
        }
      },
    };
  };
})();
