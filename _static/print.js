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

  // Of the figure's first slider, or of its first row of buttons, the two ends; the picture shows where it stands.
  const ends = (figure) => {
    const slider = figure.querySelector(".px-controls input[type=range]:enabled");
    const buttons = slider ? [] : within(figure, ".px-choice:first-child input:enabled");
    if (!slider && !buttons.length) return;
    const now = slider ? slider.value : buttons.findIndex((button) => button.checked);
    const go = (at) => {
      if (slider) slider.value = at;
      else buttons[at].checked = true;
      (slider ?? buttons[at]).dispatchEvent(new Event("input"));
    };
    const words = (at) =>
      slider ? `${slider.ariaLabel}: ${slider.getAttribute("aria-valuetext")}` : buttons[at].parentElement.textContent;
    const row = document.createElement("div");
    row.className = "px-ends";
    for (const at of (slider ? [slider.min, slider.max] : [0, buttons.length - 1]).filter((end) => end !== now)) {
      go(at);
      const end = document.createElement("div");
      end.append(figure.querySelector("svg").cloneNode(true), words(at));
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
    within(document, "figure.px-fig:not(.px-widget)").forEach(ends);
    notes();
  });
  addEventListener("afterprint", () => undo.splice(0).forEach((back) => back()));
})();
