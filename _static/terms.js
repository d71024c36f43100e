// A term of the glossary, a cited work, the letters of a tensor's name in code, or a letter in a formula about sizes: a tap or Enter
// opens the line beside it, Escape or a tap elsewhere closes it. A browser without popovers follows the link to the
// glossary, as does a click with Ctrl.
const postxTerms = {
  // The letter of a glyph that MathJax set in italics: its class "mjx-c1D43E" is K, and "mjx-c4B", upright, is none.
  letter: (names) => {
    const found = names.match(/(?:^|\s)mjx-c(1D4[3-6][0-9A-F])(?:\s|$)/);
    return found ? String.fromCodePoint(parseInt(found[1], 16)).normalize("NFKC") : "";
  },
};
window.postx = Object.assign(window.postx ?? {}, { terms: postxTerms });

addEventListener("DOMContentLoaded", () => {
  const store = document.getElementById("px-terms");
  if (!store || !("showPopover" in HTMLElement.prototype)) return;
  const { terms, names, letters, notation, sizes = [] } = JSON.parse(store.textContent);
  const box = Object.assign(document.createElement("div"), { id: "px-line", popover: "auto" });
  box.setAttribute("role", "dialog");
  document.body.append(box);

  const open = (anchor, title, words, address, place) => {
    const more = Object.assign(document.createElement("a"), { href: address, textContent: place });
    const head = Object.assign(document.createElement("strong"), { textContent: title });
    const line = Object.assign(document.createElement("p"), { textContent: words });
    box.replaceChildren(head, line, more);
    box.setAttribute("aria-label", title);
    box.showPopover();
    const at = anchor.getBoundingClientRect();
    const { width, height } = box.getBoundingClientRect();
    const { clientWidth, clientHeight } = document.documentElement;
    box.style.left = `${Math.max(8, Math.min(at.left, clientWidth - width - 8))}px`;
    box.style.top = `${at.bottom + height + 8 < clientHeight ? at.bottom + 4 : Math.max(8, at.top - height - 4)}px`;
    more.focus({ preventScroll: true });
  };

  // "S_BHKV" is S, and a line for each of its letters.
  const axes = (name) => [...name.slice(name.lastIndexOf("_") + 1)].map((l) => `${l}: ${letters[l]}`).join("\n");
  const codes = new Set(names);
  const name = (element) => (codes.has(element?.textContent) && element.matches("span.n, code span.pre") ? element.textContent : "");
  const show = (element) => open(element, name(element), axes(name(element)), notation, "Notation");

  // Letters of a formula: a tap on the letter, and for the keyboard a button behind the first formula with it, because
  // MathJax hides from a screen reader what it draws. A letter with an index, or one that is an index, is another one.
  const size = (element) => {
    const mi = element?.closest?.(".px-sizes mjx-mi");
    if (!mi || mi.childElementCount !== 1 || mi.closest("mjx-script, mjx-under, mjx-over")) return "";
    const power = mi.parentElement.matches("mjx-msup") && mi.parentElement.querySelector(":scope > mjx-script");
    if (mi.closest("mjx-msub, mjx-msubsup") || power && !power.querySelector(":scope > mjx-mn")) return "";
    const letter = postxTerms.letter(mi.firstElementChild.className);
    return sizes.includes(letter) ? letter : "";
  };
  const explain = (anchor, letter) => open(anchor, letter, letters[letter], notation, "Notation");
  const inFormulas = () => {
    const met = new Set();
    document.querySelectorAll(".px-sizes mjx-mi").forEach((mi) => {
      const letter = size(mi);
      if (!letter) return;
      mi.classList.add("px-axes");
      if (met.has(letter)) return;
      met.add(letter);
      const button = Object.assign(document.createElement("button"), { type: "button", className: "px-letter" });
      button.textContent = `What is ${letter}?`;
      button.setAttribute("aria-haspopup", "dialog");
      button.addEventListener("click", () => explain(button, letter));
      mi.closest(".px-sizes").append(button);
    });
  };
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    inFormulas();
  });

  const first = new Set(); // a keyboard stops once at each name
  document.querySelectorAll(".highlight span.n, code span.pre").forEach((element) => {
    if (!name(element)) return;
    element.classList.add("px-axes");
    if (first.has(name(element))) return;
    first.add(name(element));
    element.tabIndex = 0;
    element.setAttribute("role", "button");
    element.setAttribute("aria-haspopup", "dialog");
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href*='#']");
    const work = link?.hash.startsWith("#work-") && link.title && [link.textContent, link.title];
    const found = link && !box.contains(link) && (work || terms[link.hash.slice(1)]);
    if (found && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) {
      event.preventDefault();
      open(link, ...found, link.href, work ? "References" : "Glossary");
    } else if (name(event.target)) show(event.target);
    else if (size(event.target)) explain(event.target.closest("mjx-mi"), size(event.target));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && box.matches(":popover-open")) box.hidePopover(); // the focus goes back by itself
    else if ((event.key === "Enter" || event.key === " ") && name(event.target)) {
      event.preventDefault();
      show(event.target);
    }
  });
});
