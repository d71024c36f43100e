// Who answers: a row for each place with experts, a column for each expert. A cell says what share of the bytes so far the
// expert has answered; framed are those that answered the byte at the cursor.
(() => {
  const page = (window.postx.playground ??= {});
  page.expertsView = () => {
    const { make } = page;
    const body = make("tbody");
    const head = make("tr");
    const words = make("p", { className: "pp-words" });
    const box = make("section", { ariaLabel: "Experts", hidden: true }, make("h2", {}, "Who answers"),
      make("div", { className: "pp-scroll" }, make("table", { className: "pp-experts" }, make("thead", {}, head), body)), words);
    return {
      box,
      show({ place, places }) {
        const E = places[0].share.length;
        head.replaceChildren(make("th", { scope: "col" }, "block"), ...places[0].share.map((_, e) => make("th", { scope: "col" }, `${e + 1}`)));
        body.replaceChildren(...places.map(({ block, share, chosen }) => {
          const weights = new Map(chosen);
          const cells = share.map((part, e) => {
            const cell = make("td", { className: weights.has(e) ? "pp-answers" : "" }, `${Math.round(100 * part)}`);
            cell.style.setProperty("--share", Math.min(1, (part * E) / 4));
            if (weights.has(e)) cell.title = `weight ${weights.get(e).toFixed(2)}`;
            return cell;
          });
          return make("tr", {}, make("th", { scope: "row" }, `${block + 1}`), ...cells);
        }));
        const told = places.map(({ chosen }) => chosen.map(([e]) => e + 1).join(" and ")).join(", ");
        words.textContent = `Percent of the bytes that each of ${E} experts has answered. At byte ${place}, block by block: ${told}.`;
      },
    };
  };
})();
