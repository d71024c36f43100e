// What is wider than its column: a formula first shrinks, down to a floor; what still does not fit scrolls in its own
// box, and its edge fades (.px-more) for as long as there is more behind it. What a cell prints shrinks where that makes
// it fit, and its code a little less; printed sentences that stay too long for a line break, columns scroll.
(() => {
  const FLOOR = 0.72;
  const PRINTED = 0.78; // 9 px on a phone
  const CODE = 0.82; // 11.5 px at a desk
  // Two spaces inside a line, not behind a full stop nor before a comment: something stands under something. Code that a
  // cell prints is only set in.
  const COLUMNS = /[^.\s] {2}(?!#)|\t/;
  const FORMULAS = "mjx-container[display=true]";
  const OTHERS = ".bd-article pre, .pst-scrollable-table-container";
  const whole = new WeakMap(); // the size that MathJax gave a formula
  const fitted = new WeakMap(); // the width of the box for which it was last fitted

  const fit = (formulas) => {
    formulas.forEach((box) => {
      if (!whole.has(box)) whole.set(box, box.style.fontSize || "100%");
      box.style.fontSize = whole.get(box);
    });
    // All widths are read before any size is written: one layout instead of one for each formula.
    const sizes = formulas.map((box) => {
      fitted.set(box, box.clientWidth);
      return box.clientWidth / Math.max(1, box.firstElementChild.getBoundingClientRect().width);
    });
    formulas.forEach((box, i) => {
      if (sizes[i] < 1) box.style.fontSize = `calc(${whole.get(box)} * ${Math.max(FLOOR, sizes[i])})`;
    });
  };

  const fitPrinted = (boxes) => {
    boxes.forEach((box) => (box.style.fontSize = box.style.whiteSpace = ""));
    const sizes = boxes.map((box) => {
      const { paddingLeft, paddingRight, fontSize } = getComputedStyle(box);
      const [left, right, size] = [paddingLeft, paddingRight, fontSize].map(parseFloat);
      fitted.set(box, box.clientWidth);
      if (box.scrollWidth <= box.clientWidth) return "";
      const share = (box.clientWidth - left - right) / (box.scrollWidth - left);
      return share < (box.closest(".cell_output") ? PRINTED : CODE) ? "" : `${Math.floor(99.5 * share * size) / 100}px`;
    });
    boxes.forEach((box, i) => {
      box.style.fontSize = sizes[i];
      const breaks = box.closest(".cell_output") && !sizes[i] && !COLUMNS.test(box.textContent);
      if (breaks) box.style.whiteSpace = "pre-wrap";
    });
  };

  const cue = (box) => {
    const more = box.scrollWidth - box.clientWidth > 1;
    box.classList.toggle("px-more", more && box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
    if (more) box.tabIndex = 0; // the keyboard could not scroll it otherwise
    else box.removeAttribute("tabindex");
  };

  const look = (boxes) => {
    boxes = boxes.filter((box) => box.clientWidth > 0); // not while it is folded away
    fit(boxes.filter((box) => box.matches(FORMULAS) && fitted.get(box) !== box.clientWidth));
    fitPrinted(boxes.filter((box) => box.matches(".cell pre") && fitted.get(box) !== box.clientWidth));
    boxes.forEach(cue);
  };

  // Looks at a box at once, and again when it is unfolded or the window turns.
  const sizes = new ResizeObserver((entries) => look(entries.map((entry) => entry.target)));
  document.querySelectorAll(OTHERS).forEach((box) => sizes.observe(box));
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    document.querySelectorAll(FORMULAS).forEach((box) => sizes.observe(box));
  });
  document.addEventListener("scroll", ({ target }) => target.matches?.(`${FORMULAS}, ${OTHERS}`) && cue(target), true);
})();
