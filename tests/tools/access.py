"""axe-core on a page: what somebody who cannot see, point or tell colors apart would miss."""

from axe_playwright_python.sync_playwright import Axe

# Words of code are thousands of elements in a dozen looks, and axe takes milliseconds for the contrast of each. Of
# those alike in color, letters, classes and all that is behind them, up to the root, it is shown the first three.
KEPT = 3
ALIKE = """kept => {
    const behind = new Map([[null, '']]), met = new Map();
    const look = e => {
      if (!behind.has(e)) {
        const { backgroundColor, backgroundImage, opacity, position } = getComputedStyle(e);
        const own = [e.localName, e.className, backgroundColor, backgroundImage, opacity, position].join();
        behind.set(e, look(e.parentElement) + '|' + own);
      }
      return behind.get(e);
    };
    for (const e of document.querySelectorAll('pre span')) {
      if (e.firstElementChild || e.hasAttribute('role') || e.tabIndex >= 0 || !e.checkVisibility()) continue;
      const { color, fontSize, fontWeight } = getComputedStyle(e);
      const key = [look(e), color, fontSize, fontWeight].join();
      met.set(key, (met.get(key) ?? 0) + 1);
      if (met.get(key) > kept) e.style.visibility = 'hidden';  // axe passes over it, and nothing moves
    } }"""


def axe(page, options):
    """What breaks axe-core's rules, the theme's own included (mended in _static/postx.css and _ext)."""
    # preload: axe would look for imported style sheets in the wrong folder. resultTypes: it spends half of its
    # time on describing the thousands of elements that break nothing.
    options = {"preload": False, "resultTypes": ["violations"], **options}
    if options.get("rules", {}).get("color-contrast", {}).get("enabled", True):
        page.evaluate(ALIKE, KEPT)
    found = [
        f"{v['id']}: {n['html'][:160]} {n['target']} {n['failureSummary']}"
        for v in Axe().run(page, options=options).response["violations"]
        for n in v["nodes"]
    ]
    page.evaluate("document.querySelectorAll('pre span').forEach(e => e.style.removeProperty('visibility'))")
    return found
