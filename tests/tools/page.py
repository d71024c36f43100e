"""The code that stands on a chapter's page, taken from the notebook itself, so that page and test agree."""

import re

import nbformat

from _ext.pages import find


class Page:
    """One chapter, by its name; `scope` holds what its functions find defined, such as torch=torch."""

    def __init__(self, name, **scope):
        self.cells = nbformat.read(find(name), as_version=4).cells
        self.scope = scope

    def _cell(self, name):
        """The source of the one code cell that defines the function."""
        marker = f"\ndef {name}("
        (source,) = [c.source for c in self.cells if c.cell_type == "code" and marker in f"\n{c.source}"]
        return source

    def functions(self, *names, **more):
        """Functions that stand in cells of the page, run in one scope."""
        scope = self.scope | more
        for name in names:
            (text,) = re.findall(rf"^def {name}\(.*?(?=^\S|\Z)", self._cell(name), re.M | re.S)
            exec(text, scope)
        return [scope[name] for name in names]

    def function(self, name, **more):
        return self.functions(name, **more)[0]

    def neighbors(self, name):
        """All functions of the cell that defines `name`, by name, and the scope that they ran in."""
        scope = dict(self.scope)
        exec("\n".join(re.findall(r"^def \w+\(.*?(?=^\S|\Z)", self._cell(name), re.M | re.S)), scope)
        return scope

    def solution(self, label):
        """Everything that the code of one folded solution defines."""
        marker = f"{{solution}} {label}\n"
        (text,) = [c.source for c in self.cells if c.cell_type == "markdown" and marker in c.source]
        (code,) = re.findall(r"^```python\n(.*?)^```$", text.split(marker)[1], re.M | re.S)
        scope = {}
        exec(code, scope)
        return scope
