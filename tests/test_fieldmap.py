"""The map of the field: complete, in order of time, and nothing written over anything else."""

import itertools
import re
from pathlib import Path

import pytest

from postx import fieldmap
from postx.explore import show
from postx.fieldmap import CORE, DESCENT, LANES, WIDTH
from postx.style import FAMILY

WORKS = {name: (lane, year) for lane in LANES for name, year in lane.works.items()}

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def figure():
    fig = fieldmap.draw()
    fig.set_dpi(72)  # one pixel is one point
    fig.draw_without_rendering()
    return fig


def boxes(fig):
    renderer = fig.canvas.get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in fig.axes[0].texts]


def test_every_family_and_every_chapter_has_its_place():
    assert {lane.family for lane in LANES} == set(FAMILY)
    on_the_map = {n for lane in LANES for n in lane.chapters} | {fieldmap.COMPARED}
    assert on_the_map == {path.stem[3:] for path in (ROOT / "chapters").glob("[0-9][0-9]_*.ipynb")}
    assert fieldmap.number("linear_attention") == 5
    with pytest.raises(ValueError, match="no 'linear'"):
        fieldmap.number("linear")
    assert set(CORE) < on_the_map
    assert len(WORKS) == sum(len(lane.works) for lane in LANES)  # no name twice


def test_descent_runs_forward_in_time_between_works_on_the_map():
    for older, newer in DESCENT:
        assert WORKS[older][1] < WORKS[newer][1], (older, newer)


def test_rnn_leads_to_transformer_and_on_to_a_hybrid():
    reached = {"Elman's RNN"}
    for older, newer in DESCENT * len(DESCENT):
        reached |= {newer} if older in reached else set()
    assert "Transformer" in reached
    assert any(WORKS[name][0].family == "hybrid" for name in reached)


def test_years_run_from_left_to_right():
    places = [fieldmap.year_x(1990 + month / 12) for month in range(12 * 37)]
    assert all(a < b for a, b in itertools.pairwise(places))


def test_every_text_is_on_the_paper_and_on_no_other(figure):
    found = boxes(figure)
    width, height = figure.get_size_inches() * 72
    assert width == pytest.approx(WIDTH)
    assert set(WORKS) <= {name for name, _ in found}
    for name, box in found:
        assert box.x0 >= 0, name
        assert box.x1 <= width, name
        assert box.y0 >= 0, name
        assert box.y1 <= height, name
    for (a, box_a), (b, box_b) in itertools.combinations(found, 2):
        beside = box_a.x1 <= box_b.x0 or box_b.x1 <= box_a.x0
        above = box_a.y1 <= box_b.y0 + 1 or box_b.y1 <= box_a.y0 + 1  # descenders may share a point
        assert beside or above, (a, b)


def test_every_work_is_drawn_in_its_lane_at_its_year(figure):
    dots = {round(line.get_xdata()[0], 3) for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert {round(fieldmap.year_x(year), 3) for _, year in WORKS.values()} == dots


def test_every_word_of_a_lane_leads_to_a_chapter_of_it(figure):
    leads = {text.get_text(): text.get_url() for text in figure.axes[0].texts if text.get_url()}
    for name, (lane, _) in WORKS.items():
        assert leads[name] in {fieldmap.page(chapter) for chapter in lane.chapters}, name
    for lane in LANES:
        assert leads[lane.title] == leads[lane.cuts] == fieldmap.page(lane.chapters[0])
    words = [(text.get_text().rstrip("★"), text.get_url()) for text in figure.axes[0].texts if text.get_url()]
    numbers = {(int(digits), int(url[:2])) for digits, url in words if digits.isdigit()}
    assert all(shown == there for shown, there in numbers)
    assert {shown for shown, _ in numbers} == {fieldmap.number(n) for lane in LANES for n in lane.chapters}
    assert set(fieldmap.TOLD) <= set(WORKS)
    assert leads["Mamba-2"] == fieldmap.page("ssd_duality")


def test_every_chapter_is_a_named_stop_of_the_keyboard(monkeypatch, figure):
    monkeypatch.setenv("POSTX_STATIC", "1")
    data, _ = show(fieldmap.draw(), alt=fieldmap.alt(), pages=fieldmap.pages())._repr_mimebundle_()
    links = re.findall(r'<a href="([^"]*)" (?:aria-label="([^"]*)"|tabindex="-1")>', data["text/html"])
    assert len(links) == data["text/html"].count("<a ")
    stops = {page: name for page, name in links if name}
    assert stops == fieldmap.pages()
    assert len(stops) == len([name for _, name in links if name])
    assert stops[fieldmap.page("ssd_duality")].endswith(": One matrix, three programs")
    assert 'role="group" aria-label="Map of the field' in data["text/html"]
    with pytest.raises(ValueError, match=f"only one of pages and picture has {fieldmap.page('the_race')}"):
        show(fieldmap.draw(), alt=fieldmap.alt(), pages=dict(list(stops.items())[:-1]))


def test_the_alt_text_names_every_work_and_every_lane():
    words = fieldmap.alt()
    missing = [name for name in [*WORKS, *(lane.title for lane in LANES)] if name not in words]
    assert missing == []
