"""What a server and its visitors expect beside the pages, and the buttons that lead to the book's source.

A build has a first page under index.html, a 404 page, robots.txt, a sitemap (where html_baseurl says under which
address), .nojekyll, and sw.js, which keeps what was read for the time without a network. One value in _config.yml,
postx_repository, is the address of the repository: it switches on Colab, Binder, source and "open an issue" on every
page, and says where the book will stand (GitHub's pages) unless html.baseurl says otherwise. Empty, no page pretends
to know one.
"""

from html import escape
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from sphinx.application import Sphinx

# Network first: whoever is online reads the newest page; what was read before is there without a network.
WORKER = """// Keeps what was read, for the time without a network (_ext/site.py).
const KEPT = "postx-%(build)s";
addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) =>
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name.startsWith("postx-") && name !== KEPT) await caches.delete(name);
    await clients.claim();
  })()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== location.origin) return;
  event.respondWith((async () => {
    const kept = await caches.open(KEPT);
    try {
      const answer = await fetch(request);
      if (answer.ok) await kept.put(request, answer.clone());
      return answer;
    } catch (error) {
      const known = await kept.match(request, { ignoreSearch: true });
      if (known) return known;
      throw error;
    }
  })());
});
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%(title)s</title>%(head)s</head>
<body><p>%(words)s</p></body></html>
"""


def buttons(app: Sphinx, config) -> None:
    """Colab, Binder, source and issues, where the repository is known. ValueError for what is no address."""
    address = config.postx_repository.rstrip("/")
    if not address:
        return
    url = urlsplit(address)
    if url.scheme != "https" or url.netloc not in ("github.com", "gitlab.com") or url.path.count("/") != 2:
        raise ValueError(f"postx_repository: expected https://github.com/OWNER/NAME or empty, got {address!r}")
    if url.netloc == "github.com" and not config.html_baseurl:
        owner, name = url.path.strip("/").split("/")
        config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"  # where .github/workflows/pages.yml puts it
    config.html_theme_options |= {
        "repository_url": address, "repository_branch": "main", "path_to_docs": "", "use_repository_button": True,
        "use_issues_button": True, "use_source_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org",
                           "notebook_interface": "jupyterlab"},
    }  # fmt: skip


def only_notebooks_launch(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Colab and Binder open a notebook; a page in Markdown, with cells or without, they would show as a text."""
    if context.get("page_source_suffix") != ".ipynb" and "header_buttons" in context:
        context["header_buttons"] = [b for b in context["header_buttons"] if b.get("label") != "launch-buttons"]


def write(app: Sphinx, exception) -> None:
    """The files beside the pages."""
    if exception is not None or app.builder.format != "html":
        return
    out, base = Path(app.outdir), app.config.html_baseurl
    home, title = f"{app.config.root_doc}.html", app.config.html_title
    build = getattr(app.config, "postx_code", "")  # of postx_book.py; a book without it keeps one cache
    files = {
        ".nojekyll": "",
        "sw.js": WORKER % {"build": build},
        "robots.txt": "User-agent: *\nAllow: /\n" + (f"Sitemap: {urljoin(base, 'sitemap.xml')}\n" if base else ""),
        "index.html": page(title, f'<a href="{home}">{escape(title)}</a>',
                           f'<meta http-equiv="refresh" content="0; url={home}">'),
        "404.html": page("Not here", f'There is no such page in this book. <a href="{urljoin(base, home)}">'
                                     f"{escape(title)} begins here.</a>"),
    }  # fmt: skip
    if base:
        linked = {name for names in app.env.toctree_includes.values() for name in names}
        pages = sorted({app.config.root_doc, *linked})
        rows = "".join(f"<url><loc>{escape(urljoin(base, name))}.html</loc></url>\n" for name in pages)
        files["sitemap.xml"] = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</urlset>\n'
        )
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf8")


def page(title: str, words: str, head: str = "") -> str:
    """A page of one sentence."""
    return PAGE % {"title": escape(title), "words": words, "head": head}


def setup(app: Sphinx) -> None:
    app.add_config_value("postx_repository", "", "env", str)
    app.connect("config-inited", buttons)
    app.connect("html-page-context", only_notebooks_launch, priority=900)  # behind the theme, which adds them
    app.connect("build-finished", write)
