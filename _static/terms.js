// A term of the glossary, or the letters of a tensor's name in code: a tap or Enter opens the line beside it, Escape or a
// tap elsewhere closes it. A browser without popovers follows the link to the glossary, as does a click with Ctrl.
addEventListener("DOMContentLoaded", () => {
  const store = document.getElementById("px-terms");
  if (!store || !("showPopover" in HTMLElement.prototype)) return;
  const { terms, names, letters, notation } = JSON.parse(store.textContent);
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
  const name = (element) => (codes.has(element?.textContent) && element.matches("span.n") ? element.textContent : "");
  const show = (element) => open(element, name(element), axes(name(element)), notation, "Notation");

  const first = new Set(); // a keyboard stops once at each name
  document.querySelectorAll(".highlight span.n").forEach((element) => {
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
    const found = link && !box.contains(link) && terms[link.hash.slice(1)];
    if (found && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) {
      event.preventDefault();
      open(link, ...found, link.href, "Glossary");
    } else if (name(event.target)) show(event.target);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && box.matches(":popover-open")) box.hidePopover(); // the focus goes back by itself
    else if ((event.key === "Enter" || event.key === " ") && name(event.target)) {
      event.preventDefault();
      show(event.target);
    }
  });
});
