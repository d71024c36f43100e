// Small mends of the theme.

addEventListener("DOMContentLoaded", () => {
  // A keyboard reader passes sliders and links, not a copy button at every cell nor the mark of every heading, to which
  // the list of contents leads as well; the mouse still finds them.
  document.querySelectorAll("button.copybtn, a.headerlink").forEach((button) => (button.tabIndex = -1));
});

// Alt with an arrow goes from figure to figure: to the first handle of the next one, or of the one before.
addEventListener("keydown", (event) => {
  const step = event.altKey && !event.ctrlKey && !event.metaKey && { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const at = document.activeElement;
  if (!step || at.matches("select, textarea, input:not([type=range], [type=radio], [type=checkbox])")) return;
  const first = (figure) =>
    [...figure.querySelectorAll("input, button, select, textarea, [tabindex='0']")].find(
      (e) => !e.disabled && e.checkVisibility() && (e.type !== "radio" || e.checked),
    );
  const all = [...document.querySelectorAll("figure.px-fig")].map((figure) => [figure, first(figure)]);
  const known = all.filter(([, handle]) => handle);
  // From where the keyboard is, or else from what is on the screen.
  const behind = ([figure]) =>
    at === document.body ? figure.getBoundingClientRect().top > 0
      : at.compareDocumentPosition(figure) & Node.DOCUMENT_POSITION_FOLLOWING;
  const others = known.filter(([figure]) => !figure.contains(at));
  const next = step > 0 ? others.find(behind) : others.filter((one) => !behind(one)).pop();
  if (!next) return;
  event.preventDefault();
  next[0].scrollIntoView({ block: "nearest" });
  next[1].focus({ preventScroll: true });
});

// Served over http, what was read stays readable without a network. sw.js lies at the root of the book.
if (navigator.serviceWorker && location.protocol.startsWith("http")) {
  const root = document.documentElement.dataset.content_root;
  addEventListener("load", () => navigator.serviceWorker.register(`${root}sw.js`));
}
