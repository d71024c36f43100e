// What the search shows of a page it found: prose, without the list of contents, code, outputs and formulas.
// From disk a page may not fetch its neighbours: titles only. Said at once, as the search may begin before we are ready.
if (typeof DOCUMENTATION_OPTIONS !== "undefined" && location.protocol === "file:")
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const short = (math) => {
    const tex = math.textContent.replace(/^\\\(|\\\)$/g, "");
    return /^[\w\s=+*/.,]{1,12}$/.test(tex) ? tex : "…";
  };
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    const part = (anchor && page.querySelector(`article.bd-article ${anchor}`)) || page.querySelector("article.bd-article");
    if (!part) return "";
    part.querySelectorAll(".cell, pre, figure, nav, .headerlink, .eqno, script, style").forEach((e) => e.remove());
    part.querySelectorAll("span.math").forEach((math) => math.replaceWith(short(math)));
    part.querySelectorAll("div.math").forEach((math) => math.replaceWith(" … "));
    part.querySelectorAll("br, p, td, th, dt, li, h1, h2, h3").forEach((e) => e.after(" "));
    return part.textContent.replace(/\s+/g, " ");
  };
});
