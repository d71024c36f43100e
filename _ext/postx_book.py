"""The Sphinx extension of the book.

It makes a build static and self-contained: kernels are told to draw static sliders, MathJax is copied out of
a wheel, and the cache of executed notebooks is keyed by the code that the notebooks run (keys.py).
"""

import os
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from _ext import (
    bundle,
    cards,
    cells,
    citations,
    evidence,
    evidence_page,
    guess,
    head,
    icons,
    marks,
    mixers_page,
    pages,
    planner_page,
    playground,
    site,
    terms,
    typography,
)
from _ext.keys import cache_folder, code_digest

log = logging.getLogger(__name__)

MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")  # 2.2 of the wheel's 24 MB


def key_cache(app: Sphinx, config) -> None:
    """Give today's code its own execution cache, and drop the caches of older code.

    Sphinx reads every page again when ``postx_code`` changes; the cache on its own would not see an edit to
    the package, because it looks at the notebook's cells only.
    """
    today = cache_folder(Path(app.srcdir))
    config.postx_code = code_digest(Path(app.srcdir))
    config.nb_execution_cache_path = str(today)
    if only := os.environ.get("POSTX_PAGE"):  # `make page`: the other pages show their committed outputs
        config.nb_execution_excludepatterns = [
            f"chapters/{path.name}" for name, path in pages.files(Path(app.srcdir)).items() if name != pages.name(only)
        ]
    for old in today.parent.glob("*"):
        if old.name != today.name:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def copy_mathjax(app: Sphinx) -> None:
    """Copy what MathJax needs for TeX; not through _static/: Jupyter Book runs its scripts on every page."""
    if app.builder.format != "html":
        return
    wheel = distribution("sphinx-mathjax-offline")
    source = Path(wheel.locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX:
        if (target / name).exists():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        copy(source / name, target / name)


def check_equations(app: Sphinx, env) -> None:
    """Warn where Sphinx and evidence.py disagree about which equations the book has."""
    drawn = {label: docname for label, (docname, _) in env.get_domain("math").equations.items()}
    root = Path(app.srcdir)
    read = {e: pages.docname(page, root) for e, page in evidence.equations(root).items()}
    read = {e: docname for e, docname in read.items() if docname in env.all_docs}
    for label in sorted(set(drawn.items()) ^ set(read.items())):
        who = "Sphinx" if label[0] in drawn else "_ext/evidence.py"
        log.warning("only %s sees equation %r on this page", who, label[0], location=label[1])


def drop_empty_heads(app: Sphinx, doctree) -> None:
    """Markdown cannot write a table without a header; empty header cells announce columns without a name."""
    for row in list(doctree.findall(nodes.thead)):
        if not row.astext().strip():
            row.parent.remove(row)


def mend_body(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """What docutils and sphinx-exercise get wrong: a role not allowed in its list; a link that begins with a space."""
    if "body" in context:
        body = context["body"].replace(' role="doc-biblioentry"', ' role="listitem"')
        context["body"] = re.sub(r"Solution to(<a [^>]*>) +", r"Solution to \1", body)


def redirect_old_names(app: Sphinx, exception) -> None:
    """A chapter that was moved is still found under its old number."""
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.srcdir)
    for old, page in pages.redirects(root).items():
        target = f"{pages.find(page, root).stem}.html"
        stub = Path(app.outdir) / "chapters" / f"{old}.html"
        if not (root / "chapters" / f"{old}.ipynb").exists():
            jump = f'<meta http-equiv="refresh" content="0; url={target}">'
            text = f'<!doctype html><meta charset="utf-8">{jump}<title>{page}</title><a href="{target}">{page}</a>\n'
            stub.write_text(text, encoding="utf8")


def forget_failed_build(app: Sphinx, exception) -> None:
    """Sphinx warns only about pages that it reads, so a second build would hide the warnings of the first."""
    if exception is not None or app._warncount:
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict:
    os.environ["POSTX_STATIC"] = "1"  # the kernels inherit it: explore() and show() draw static frames
    app.add_config_value("postx_code", "", "env", str)
    app.connect("config-inited", key_cache)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-check-consistency", check_equations)
    app.connect("doctree-read", drop_empty_heads)
    app.connect("html-page-context", mend_body)
    app.connect("build-finished", redirect_old_names)
    app.connect("build-finished", forget_failed_build)
    written = (evidence_page, mixers_page, planner_page, playground)  # pages, or parts of one, that code writes
    for part in (bundle, cards, cells, citations, guess, head, icons, marks, site, terms, typography, *written):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
