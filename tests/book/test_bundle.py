"""A page waits for three files at most, and finds in them what stood in many."""

import re

import browser
import pytest
import tinycss2

from _ext import bundle

LINK = re.compile(r'<link rel="stylesheet"[^>]* href="([^"?]+)|<script src="([^"?]+)')


def test_styles_bring_those_they_import_and_keep_their_addresses(tmp_path):
    for name, text in {
        "_static/basic.css": 'a { background: url("file.png") }',
        "_static/styles/theme.css": '@charset "utf-8"; @import "../basic.css"; b { src: url(../fonts/x.woff) }',
        "_static/own.css": "i { background: url('data:image/svg+xml,<svg/>') } /*# sourceMappingURL=own.map */",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    name = bundle.write(tmp_path, ["_static/styles/theme.css", "_static/own.css"], "css")
    head, *lines = (tmp_path / name).read_text().split("\n")
    assert head == "/* _static/styles/theme.css _static/own.css */"
    assert [line.strip() for line in lines] == [
        'a { background: url("../file.png") } b { src: url(../fonts/x.woff) }',
        "i { background: url('data:image/svg+xml,<svg/>') }",
    ]


def test_a_page_that_is_not_written_again_finds_todays_styles_and_those_that_came_late(tmp_path):
    class Book:
        outdir = tmp_path
        builder = type("Builder", (), {"format": "html"})

    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/a.css").write_text("a { color: red }")
    made = tmp_path / bundle.write(tmp_path, ["_static/a.css", "_static/late.css"], "css")
    (tmp_path / "_static/a.css").write_text("a { color: blue }")
    (tmp_path / "_static/late.css").write_text("b {}")
    bundle.renew(Book, None)
    assert made.read_text() == "/* _static/a.css _static/late.css */\na{color: blue}\nb{}"


def test_rules_stay_where_one_of_their_selectors_can_meet_something():
    css = """.a,.gone{x:1} .gone .a{x:2} p.a:not(.gone)>i{x:3} .px-made{x:4} html[data-theme="dark"] b{x:5}
    @media print{.gone{x:6} .a{x:7}} @media (min-width:9px){.gone{x:8}} @font-face{font-family:F} .x\\:y{x:9}"""
    rules = tinycss2.parse_stylesheet(css, True, True)
    assert bundle.used(rules, {"a", "x:y"}, ("px-",)).split("\n") == [
        ".a{x:1}",
        "p.a:not(.gone)>i{x:3}",
        ".px-made{x:4}",
        'html[data-theme="dark"] b{x:5}',
        "@media print{.a{x:7}}",
        "@font-face{font-family:F}",
        ".x\\:y{x:9}",
    ]


def test_classes_are_looked_for_in_pages_and_scripts(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "a.html").write_text('<i class="one two"></i>')
    (tmp_path / "_static/a.js").write_text("e.className = 'three'; e.classList.add(`px-${n}`, 'fa-' + n)")
    known, beginnings = bundle.names_of(tmp_path)
    assert {"one", "two", "three"} <= known
    assert beginnings == ("px-",)


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: make book")
@pytest.mark.parametrize("name", browser.pages() if browser.HTML.exists() else [])
def test_a_page_waits_for_three_files_at_most(name):
    head = (browser.HTML / name).read_text(encoding="utf8").partition("</head>")[0]
    waited = ["".join(found) for found in LINK.findall(head)]
    ours = [path for path in waited if bundle.FOLDER in path]
    assert [path.rpartition(".")[2] for path in ours] in (["css", "js"], ["css", "css", "js"])
    assert ours == waited or name == "search.html", "the page of the search needs its tools at once"
    for path in ((browser.HTML / name).parent / path for path in ours):
        files = path.read_text(encoding="utf8").partition("\n")[0].strip("/* ").split()
        assert not [file for file in files if not (browser.HTML / file).exists()]
        addresses = re.findall(r"""url\(["']?(?!data:)([^"')]+)""", path.read_text(encoding="utf8"))
        assert not [address for address in addresses if not (path.parent / address.partition("?")[0]).exists()]
