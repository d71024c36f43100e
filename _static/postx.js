// Moves the sliders of a built page: every group of the picture that differs is swapped for its look in that frame.
// Each figure calls this in a script of its own right behind its data, so no slider waits for the rest of the page.
window.postx = (figure) => {
  const data = postx.data(figure);
  const picture = figure.querySelector("svg");
  const readout = figure.querySelector(".px-readout");
  const groups = data.slots.map(({ slot }) => picture.querySelector(`[data-slot="${slot}"]`));
  const shown = data.slots.map(() => -1);
  const made = data.slots.map(() => []); // what was seen once is not read again
  const of = (texts, frame) => texts[texts.length > 1 ? frame : 0];

  postx.handles(figure, data, data.texts, groups, (at) => {
    const frame = at.reduce((sum, place, i) => sum * data.texts[i].length + place, 0);
    data.slots.forEach(({ looks, picks }, i) => {
      const look = picks[frame];
      if (shown[i] === look) return;
      if (made[i][look]) groups[i].replaceChildren(...made[i][look]);
      else {
        groups[i].innerHTML = looks[look];
        made[i][look] = [...groups[i].childNodes];
      }
      shown[i] = look;
    });
    picture.setAttribute("aria-label", of(data.alts, frame));
    if (readout) readout.textContent = of(data.readouts, frame);
  });
};

postx.data = (figure) => JSON.parse(figure.querySelector("script[type='application/json']").textContent);

// A tool of the page's own: what `make` does with the figures of this name and with their data (postx/explore/widget.py).
postx.widget = (name, make) =>
  document.querySelectorAll(`figure[data-widget="${name}"]`).forEach((figure) => make(figure, postx.data(figure)));

// Endless numbers in [0, 1) that depend on a name alone, as postx/widgets/words.py has them.
window.postx.numbers = (name) => {
  let state = 2166136261;
  for (const letter of name) state = Math.imul(state ^ letter.codePointAt(0), 16777619);
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
};
window.postx.unit = (name, width) => {
  const next = window.postx.numbers(name);
  const x = Array.from({ length: width }, () => 2 * next() - 1);
  const length = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));
  return x.map((value) => value / length);
};
