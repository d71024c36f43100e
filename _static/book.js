// Small mends of the theme.

addEventListener("DOMContentLoaded", () => {
  // A keyboard reader passes sliders and links, not a copy button at every cell nor the mark of every heading, to which
  // the list of contents leads as well; the mouse still finds them.
  document.querySelectorAll("button.copybtn, a.headerlink").forEach((button) => (button.tabIndex = -1));
});

// Served over http, what was read stays readable without a network. sw.js lies at the root of the book.
if (navigator.serviceWorker && location.protocol.startsWith("http")) {
  const root = document.documentElement.dataset.content_root;
  addEventListener("load", () => navigator.serviceWorker.register(`${root}sw.js`));
}
