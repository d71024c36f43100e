"""axe-core on a page: what somebody who cannot see, point or tell colors apart would miss."""

from axe_playwright_python.sync_playwright import Axe

# Words of code are most of a page's elements, in a dozen looks, and axe takes a millisecond or two for each. Of those
# alike in color, letters, classes and all that is behind them, up to the root, it is shown the first three; the others,
# and those that nobody sees, become plain text of their line.
KEPT = 3
ALIKE = """kept => {
    const behind = new Map([[null, '']]), met = new Map(), plain = [];
    const look = e => {
      if (!behind.has(e)) {
        const { backgroundColor, backgroundImage, opacity, position } = getComputedStyle(e);
        const own = [e.localName, e.className, backgroundColor, backgroundImage, opacity, position].join();
        behind.set(e, look(e.parentElement) + '|' + own);
      }
      return behind.get(e);
    };
    const seen = new Map();
    for (const e of document.querySelectorAll('pre span')) {
      if (e.firstElementChild || e.hasAttribute('role') || e.tabIndex >= 0) continue;
      const block = e.closest('pre');
      if (!seen.has(block)) seen.set(block, block.checkVisibility());
      const { color, fontSize, fontWeight } = seen.get(block) ? getComputedStyle(e) : {};
      const key = seen.get(block) && [look(e), color, fontSize, fontWeight].join();
      met.set(key, (met.get(key) ?? 0) + 1);
      if (!key || met.get(key) > kept) plain.push(e);
    }
    for (const e of plain) e.replaceWith(e.textContent);  // last: a look behind a change costs a new layout
    for (const block of seen.keys()) block.normalize(); }"""


def axe(page, options):
    """What breaks axe-core's rules, the theme's own included (mended in _static/postx.css and _ext)."""
    # preload: axe would look for imported style sheets in the wrong folder. resultTypes: it spends half of its
    # time on describing the thousands of elements that break nothing.
    options = {"preload": False, "resultTypes": ["violations"], **options}
    page.evaluate(ALIKE, KEPT)
    return [
        f"{v['id']}: {n['html'][:160]} {n['target']} {n['failureSummary']}"
        for v in Axe().run(page, options=options).response["violations"]
        for n in v["nodes"]
    ]
