"""What a page shows of a cell that the notebook does not: checks folded away, and bars that say what they hide.

The notebooks stay as they are, so JupyterLab and nbval run every assert; only the drawn page folds them.
"""

import ast

from docutils import nodes
from sphinx.application import Sphinx

CODE, OUTPUT = "cell_code_source", "cell_code_output"


def is_check(node: ast.stmt) -> bool:
    """An assert, or a loop, condition or block that holds nothing else."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.For | ast.While | ast.If | ast.With):
        return False
    return all(map(is_check, [*node.body, *getattr(node, "orelse", [])]))


def split(source: str) -> tuple[str, str, int]:
    """The source of a cell without its top-level checks, the checks, and how many asserts they are.

    A comment on the lines right above a check goes with it. What is no Python (a magic of IPython) stays whole.

    >>> split("x = 2\\n# even\\nassert x % 2 == 0\\nprint(x)")
    ('x = 2\\nprint(x)', '# even\\nassert x % 2 == 0', 1)
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return source, "", 0
    lines = source.splitlines()
    starts = [min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", []))]) - 1 for n in body]
    ours: set[int] = set()
    count = 0
    for i, node in enumerate(body):
        start, end = starts[i], node.end_lineno
        shared = any(j != i and starts[j] < end and n.end_lineno > start for j, n in enumerate(body))
        if not is_check(node) or shared:  # two statements on one line are not taken apart
            continue
        while start and lines[start - 1].startswith("#"):
            start -= 1
        ours.update(range(start, end))
        count += sum(isinstance(n, ast.Assert) for n in ast.walk(node))
    kept = []
    gone = False  # a blank line after what went away is one too many
    for i, line in enumerate(lines):
        if i in ours or (gone and not line.strip()):
            gone = True
        else:
            kept.append(line)
            gone = False
    return "\n".join(kept).strip("\n"), "\n".join(lines[i] for i in sorted(ours)), count


def details(summary: str, name: str, *body: nodes.Node) -> list[nodes.Node]:
    """A folded box of HTML around nodes; other builders show what is in it."""
    head = f'<details class="{name}"><summary>{summary}</summary>'
    return [nodes.raw("", head, format="html"), *body, nodes.raw("", "</details>", format="html")]


def fold_checks(app: Sphinx, doctree) -> None:
    """Move the top-level asserts of a shown cell into a folded box under its code."""
    for box in doctree.findall(nodes.container):
        if box.get("nb_element") != CODE:
            continue
        for block in list(box.findall(nodes.literal_block)):
            code, checks, count = split(block.astext())
            if not count:
                continue
            folded = block.copy()
            folded.rawsource = checks
            folded += nodes.Text(checks)
            summary = "1 check, which holds" if count == 1 else f"{count} checks, which hold"
            parts = details(summary, "px-checks", folded)
            if code:
                block.rawsource = code
                block[:] = [nodes.Text(code)]
                parts.insert(0, block.deepcopy())
            block.replace_self(parts)


def name_bars(app: Sphinx, doctree) -> None:
    """Say on the bar of a folded part whether a figure or a set-up is behind it, or what was printed."""
    for cell in doctree.findall(nodes.container):
        mode = cell.get("hide_mode")
        if cell.get("nb_element") != "cell_code" or not mode:
            continue
        if "output" in mode:  # myst_nb writes what is folded in place of {type}
            cell["prompt_show"] = cell["prompt_hide"] = "The {type} of this cell"
            continue
        outputs = [c for c in cell.findall(nodes.container) if c.get("nb_element") == OUTPUT]
        mimes = {c.get("mime_type", "") for box in outputs for c in box.findall(nodes.container)}
        name = "this figure" if "image/png" in mimes else "these numbers" if outputs else "the set-up"
        cell["prompt_show"] = cell["prompt_hide"] = f"Code of {name}"


def fold_tests(app: Sphinx, doctree) -> None:
    """Fold the table of tests that ends a chapter, and what is said about it, under its heading."""
    for table in list(doctree.findall(nodes.table)):
        section = table.parent
        if "px-own-tests" not in table["classes"] or not isinstance(section, nodes.section):
            continue
        count = sum(isinstance(row.parent, nodes.tbody) for row in table.findall(nodes.row))
        summary = "1 equation and its tests" if count == 1 else f"{count} equations and their tests"
        body = [child for child in section.children if not isinstance(child, nodes.title)]
        for child in body:
            section.remove(child)
        section += details(summary, "px-fold", *body)


def setup(app: Sphinx) -> None:
    for handler in (fold_checks, name_bars, fold_tests):
        app.connect("doctree-read", handler)
