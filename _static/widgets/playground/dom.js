// Elements in one call: make("button", { onclick }, "words", child, ...); a name with a colon is SVG's, "svg:path".
(() => {
  const page = (window.postx.playground ??= {});
  page.make = (name, set = {}, ...inside) => {
    const [space, tag] = name.includes(":") ? name.split(":") : [null, name];
    const made = space ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(set)) {
      if (key in made && !space) made[key] = value;
      else if (value !== null) made.setAttribute(key, value);
    }
    made.append(...inside);
    return made;
  };

  // Radio buttons under one name; `choose` gets the value of the one that is taken.
  page.radios = (legend, options, value, choose) => {
    const { make } = page;
    const name = `px-${legend.replace(/\W/g, "-")}-${Math.random().toString(36).slice(2)}`;
    const labels = options.map(([key, words]) =>
      make("label", {}, make("input", { type: "radio", name, value: key, checked: key === value, onchange: () => choose(key) }), ` ${words}`));
    return make("fieldset", { className: "pp-radios" }, make("legend", {}, legend), ...labels);
  };

  page.picker = (label, options, choose) => {
    const { make } = page;
    const select = make("select", { onchange: () => choose(select.value) });
    select.append(...options.map(([key, words]) => make("option", { value: key }, words)));
    return { label: make("label", {}, `${label} `, select), select };
  };

  // Words that are there already are not laid out again.
  page.say = (element, words) => element.textContent === words || (element.textContent = words);

  // () => how wide an element is, kept up to date: to ask for clientWidth after a change is to wait for a layout.
  page.widthOf = (element) => {
    let wide = 0;
    new ResizeObserver(([{ contentRect }]) => (wide = contentRect.width)).observe(element);
    return () => wide || element.clientWidth;
  };

  // later(view, draw): pictures are drawn one a frame, each as it was last asked for, and none in the frame of a key. All
  // at once they would be one task of style, layout and paint, 25 ms on a slow machine, that the next key waits for.
  const waiting = new Map();
  let key = false;
  window.addEventListener?.("keydown", () => (key = true), true);
  const frame = () => {
    const [[view, draw]] = waiting;
    if (key) return (key = false), requestAnimationFrame(frame);
    waiting.delete(view);
    if (waiting.size) requestAnimationFrame(frame);
    draw();
  };
  page.later = (view, draw) => {
    if (!waiting.size) requestAnimationFrame(frame);
    waiting.set(view, draw);
  };

  // A button that is at work keeps the focus, which one that is disabled loses to nothing.
  page.once = (words, work) => {
    const go = page.make("button", { type: "button", className: "pp-button" }, words);
    go.onclick = async () => {
      if (go.getAttribute("aria-disabled") === "true") return;
      go.setAttribute("aria-disabled", true);
      await work();
    };
    return { go, again: (next) => (go.removeAttribute("aria-disabled"), next && (go.textContent = next)) };
  };

  page.megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  page.kibibytes = (bytes) => `${Math.round(bytes / 1024).toLocaleString("en-US")} KiB`;
  page.percent = (p) => (p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`);
})();
