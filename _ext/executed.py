"""One execution for two purposes: what nbval ran, and found equal to what is committed, becomes the page of the book.

A pytest plugin of `python -m _ext.notebooks --test`. The kernels run with POSTX_STATIC=both: each figure gives its
text and PNG, its live widget, and the HTML of the book. nbval compares all but that HTML, which no committed
notebook has (`notebooks.faults` sees to it). A chapter whose cells all pass goes into the cache that the book reads,
under the key of today's code; the book then has nothing left to execute.
"""

import time
from copy import deepcopy
from pathlib import Path

import pytest
from jupyter_cache import get_cache
from nbval.plugin import IPyNbCell

import _ext.share  # noqa: F401  (the kernels inherit it)
from _ext import run, spent
from _ext.keys import cache_folder

FIGURE = '<figure class="px-fig'  # with or without the name of a widget behind it


def without_pages(outputs: list) -> list:
    """The outputs without the HTML that figures have in the book only; any other HTML stays and is compared."""
    found = deepcopy(outputs)
    for output in found:
        if output.get("data", {}).get("text/html", "").startswith(FIGURE):
            del output["data"]["text/html"]
    return found


def reply(client, message: str) -> dict:
    """The kernel's reply to a message."""
    while (got := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != message:
        pass
    return got


class Pages:
    """Follows the cells of each notebook; hands on the notebook when its last cell has run and none has failed."""

    def __init__(self, root: Path):
        self.root = root
        self.started: dict = {}
        self.passed: dict = {}

    def pytest_itemcollected(self, item):
        if isinstance(item, IPyNbCell):
            compare = item.compare_outputs
            item.compare_outputs = lambda test, *rest, **kw: compare(without_pages(test), *rest, **kw)

    @pytest.hookimpl(trylast=True)  # nbval has started the kernel by then
    def pytest_runtest_setup(self, item):
        if isinstance(item, IPyNbCell) and item.parent not in self.started:
            self.started[item.parent] = time.time()
            reply(item.parent.kernel.kc, spent.begin(item.parent.kernel.kc))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.when == "call" and report.passed and isinstance(item, IPyNbCell):
            cells = self.passed.setdefault(item.parent, {})
            cells[item.cell_num] = item.test_outputs
            if len(cells) == sum(cell.cell_type == "code" for cell in item.parent.nb.cells):
                self.keep(item.parent, cells)
        return report

    def keep(self, file, cells: dict):
        """Put the notebook with the outputs of this run where the book looks for it."""
        nb = deepcopy(file.nb)
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code):
            cell.outputs = cells[number]
        cost = spent.read(reply(file.kernel.kc, spent.ask(file.kernel.kc)))
        run.keep(self.root, file.path, nb, time.time() - self.started[file], cost)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # once, before there are workers: two may not create it at a time
        get_cache(str(cache_folder(config.rootpath))).db  # noqa: B018
    config.pluginmanager.register(Pages(config.rootpath), "postx-pages")
