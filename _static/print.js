// What paper needs: answers open, a slider as its ends beside where it stands, addresses of links as numbered notes.
// Code that was folded stays folded. Afterwards the page is as it was.
(() => {
  const undo = [];
  const within = (root, all) => [...root.querySelectorAll(all)];

  const unfold = () =>
    within(document, "details:not([open]):not(.hide)").forEach((box) => {
      box.open = true;
      undo.push(() => (box.open = false));
    });

  // Of the figure's first control, the two ends; the picture itself shows where it stands.
  const ends = (figure) => {
    const control = figure.querySelector(".px-controls input[type=range]:enabled");
    if (!control) return;
    const now = control.value;
    const go = (value) => {
      control.value = value;
      control.dispatchEvent(new Event("input"));
    };
    const row = document.createElement("div");
    row.className = "px-ends";
    for (const value of [control.min, control.max].filter((end) => end !== now)) {
      go(value);
      const end = document.createElement("div");
      end.append(figure.querySelector("svg").cloneNode(true));
      end.append(`${control.ariaLabel}: ${control.getAttribute("aria-valuetext")}`);
      row.append(end);
    }
    go(now);
    figure.querySelector(".px-controls").after(row);
    undo.push(() => row.remove());
  };

  const notes = () => {
    const article = document.querySelector(".bd-article");
    const list = document.createElement("ol");
    const known = new Map();
    within(article, "a[href^='http']").forEach((link) => {
      if (link.textContent === link.href) return;
      if (!known.has(link.href)) {
        known.set(link.href, known.size + 1);
        list.append(Object.assign(document.createElement("li"), { textContent: link.href }));
      }
      const mark = Object.assign(document.createElement("sup"), { textContent: known.get(link.href) });
      link.after(mark);
      undo.push(() => mark.remove());
    });
    if (!known.size) return;
    const box = Object.assign(document.createElement("section"), { className: "px-notes" });
    box.append(Object.assign(document.createElement("h2"), { textContent: "Addresses" }), list);
    article.append(box);
    undo.push(() => box.remove());
  };

  addEventListener("beforeprint", () => {
    if (undo.length) return;
    unfold();
    within(document, "figure.px-fig").forEach(ends);
    notes();
  });
  addEventListener("afterprint", () => undo.splice(0).forEach((back) => back()));
})();
