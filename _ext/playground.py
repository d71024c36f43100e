"""``{postx-playground}``: a build in which no page of it changed does not import torch."""

import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Playground(SphinxDirective):
    optional_arguments = 1

    def run(self):
        from _ext import playground_page

        shutil.rmtree(copied(self.env.app), ignore_errors=True)  # whatever was read again is copied again
        return [nodes.raw("", playground_page.page(Path(self.env.srcdir), self.arguments), format="html")]


def copied(app: Sphinx) -> Path:
    return Path(app.outdir) / "_static" / "playground"


def copy_weights(app: Sphinx, exception) -> None:
    """Bring the packed weights beside the page; they are there already where it was not read again."""
    target = copied(app)
    if exception is not None or app.builder.format != "html" or target.exists():
        return
    from _ext import playground_page

    target.mkdir(parents=True)
    for script in playground_page.prepare(Path(app.srcdir)).glob("*.js"):
        shutil.copyfile(script, target / script.name)


def setup(app: Sphinx) -> None:
    app.add_directive("postx-playground", Playground)
    app.connect("build-finished", copy_weights)
