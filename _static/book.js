// From disk a page may not fetch its neighbours, so the search shows titles there and leaves out the excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// A formula wider than the window scrolls in its own box; without a tab stop the keyboard could not scroll it.
const reachable = () =>
  document.querySelectorAll("mjx-container[display=true]").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
addEventListener("load", () => window.MathJax?.startup?.promise.then(reachable));
addEventListener("resize", reachable);
