"""A build in which nothing changed reads and imports little, and a page that was read again gets what belongs to it."""

import subprocess
import sys
from types import SimpleNamespace

from browser import ROOT

from _ext import evidence_page, playground, playground_page

HEAVY = ("torch", "numba", "matplotlib", "rfc3987_syntax.syntax_helpers")


def test_the_extension_and_the_reader_of_notebooks_import_nothing_heavy():
    code = f"import sys, _ext.postx_book, _ext.run; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_are_copied_where_they_are_missing_or_the_page_was_read_again(tmp_path, monkeypatch):
    packed = tmp_path / "packed"
    packed.mkdir()
    asked = []
    monkeypatch.setattr(playground_page, "prepare", lambda root: asked.append(root) or packed)
    monkeypatch.setattr(playground_page, "page", lambda root, arguments: "<figure></figure>")
    app = SimpleNamespace(outdir=tmp_path / "html", srcdir=tmp_path, builder=SimpleNamespace(format="html"))
    reader = SimpleNamespace(env=SimpleNamespace(app=app, srcdir=tmp_path), arguments=[])

    def build(text, read, fails=None):
        (packed / "weights.js").write_text(text)
        if read:
            playground.Playground.run(reader)
        playground.copy_weights(app, fails)

    there = tmp_path / "html" / "_static" / "playground" / "weights.js"
    build("one", read=True)
    assert there.read_text() == "one"
    build("two", read=False)  # no page is read that shows them: postx_code is that of the build before
    assert there.read_text() == "one"
    assert len(asked) == 1
    build("three", read=True, fails=ValueError())
    build("three", read=False)
    assert there.read_text() == "three"


def test_the_evidence_is_drawn_again_when_any_file_of_it_changed_or_came(tmp_path):
    def env():
        return SimpleNamespace(metadata={"chapters/evidence": {evidence_page.DRAWN: drawn}, "chapters/intro": {}})

    app = SimpleNamespace(srcdir=tmp_path)
    for folder in evidence_page.SOURCES:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "old.toml").write_text("one")
    for folder in evidence_page.SOURCES:
        for name in ("old.toml", "new.json"):
            drawn = evidence_page.drawn_from(tmp_path)
            assert evidence_page.outdated(app, env(), set(), set(), set()) == []
            (tmp_path / folder / name).write_text("two")
            assert evidence_page.outdated(app, env(), set(), set(), set()) == ["chapters/evidence"]
