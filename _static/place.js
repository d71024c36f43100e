// The place where a reader stopped, offered on the first page. It stays in this browser.
addEventListener("DOMContentLoaded", () => {
  const KEY = "postx-place";
  const root = document.documentElement.dataset.content_root;
  const article = document.querySelector(".bd-article");
  const h1 = article?.querySelector("h1");
  if (!h1) return;
  const words = (heading) => [...heading.childNodes].filter((part) => !part.matches?.(".headerlink"))
    .map((part) => part.textContent).join("");
  const path = new URL(location.href).pathname.split("/").slice(-2).join("/");

  const kept = (way) => {
    try {
      return way();
    } catch {
      return null; // a browser that keeps nothing: every visit is a first one
    }
  };
  if (path === "chapters/intro.html") {
    const place = kept(() => JSON.parse(localStorage.getItem(KEY)));
    if (!place) return;
    const line = document.createElement("p");
    line.className = "px-place";
    const link = Object.assign(document.createElement("a"), { href: root + place.path, textContent: place.words });
    line.append("You stopped at ", link, ".");
    h1.after(line);
  } else if (/^chapters\/\d\d_/.test(path)) {
    addEventListener("pagehide", () => {
      const passed = [...article.querySelectorAll("h2")].filter((h2) => h2.getBoundingClientRect().top < 120).pop();
      if (!passed) return; // the first screen is no place to come back to
      const place = { path: `${path}#${passed.closest("section").id}`, words: `${words(h1)}: ${words(passed)}` };
      kept(() => localStorage.setItem(KEY, JSON.stringify(place)));
    });
  }
});
