// Small mends of the theme.

addEventListener("DOMContentLoaded", () => {
  // A keyboard reader passes sliders and links, not a copy button at every cell; the mouse still finds them.
  document.querySelectorAll("button.copybtn").forEach((button) => (button.tabIndex = -1));
});

// Answers and checks are printed open, code that was folded stays folded.
const unfolded = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open]):not(.hide)").forEach((box) => {
    box.open = true;
    unfolded.push(box);
  });
});
addEventListener("afterprint", () => unfolded.splice(0).forEach((box) => (box.open = false)));
