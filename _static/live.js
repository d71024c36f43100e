// Figures that are a formula (postx/explore/live.py): the sliders' numbers go into functions that Python wrote from the
// same expressions, and the curves, dots and words of the picture go where they say.
postx.live = (figure, code) => {
  const data = postx.data(figure);
  const { format, pixel, stops, curve, numbers: all } = postx.live;
  const picture = figure.querySelector("svg");
  const readout = figure.querySelector(".px-readout");
  const sliders = data.sliders.map((slider) => all(slider.values));
  const texts = data.sliders.map((slider, i) => stops(slider, sliders[i]));
  const grid = data.over && curve(data.over);
  const groups = data.moves.map(({ slot }) => picture.querySelector(`[data-slot="${slot}"]`));
  if (data.drag?.axis) {
    data.drag.x = sliders[data.drag.slider].map((value) => pixel(data.drag.axis, value));
  }

  const names = [...figure.querySelectorAll(".px-name")].map((e) => e.textContent.split(" ").filter((word) => /^\w+s$/.test(word)));

  const say = (parts, at, numbers) => {
    const told = parts.map((part) => {
      if (typeof part === "string") return part;
      return part.length > 1 ? format(numbers[part[0]], part[1]) : texts[part[0]][at[part[0]]];
    });
    // "1 text", as sliders.py has it: the words that name a slider which stands at 1.
    const ones = names.flatMap((words, i) => (texts[i][at[i]] === "1" ? words : []));
    return ones.reduce(
      (all, word) => all.replace(new RegExp(`(?<![\\w.,])1 ${word}\\b`, "g"), `1 ${word.slice(0, -1)}`),
      told.join(""),
    );
  };

  postx.handles(figure, data, texts, groups, (at) => {
    const values = at.map((place, i) => sliders[i][place] ?? NaN);
    const of = (f, u) => (grid ? f(u, ...values) : f(...values));
    data.moves.forEach((move, i) => postx.live.put(groups[i], move, code.moves[i], of, grid));
    const numbers = code.values.map((f) => of(f, NaN));
    picture.setAttribute("aria-label", say(data.alt, at, numbers));
    const which = of(code.says, NaN);
    if (readout) readout.textContent = which < 0 ? "" : say(data.says[which], at, numbers);
  });
  postx.live.all.push({ figure, data, code, sliders, texts });
};
postx.live.all = []; // for who wants to ask a figure's functions, as the tests do

// Moves one curve, dot or word.
postx.live.put = (group, { axes, from, drawn, curve }, functions, of, grid) => {
  const at = (i, u) => postx.live.pixel(axes[i], of(functions[i], u));
  if (from) {
    const [dx, dy] = [0, 1].map((i) => (functions[i] ? at(i, NaN) - postx.live.pixel(axes[i], from[i]) : 0));
    group.setAttribute("transform", `translate(${dx} ${dy})`);
    return;
  }
  const corners = curve ? grid.map((u) => [at(0, u), at(1, u)]) : (drawn ?? [[0, 0]]);
  const points = curve ? corners : corners.map((corner) => corner.map((n, i) => (functions[i] ? at(i, NaN) : n)));
  const dot = group.querySelector("use");
  if (!dot) group.querySelector("path").setAttribute("d", postx.live.line(points));
  else ["x", "y"].forEach((key, i) => dot.setAttribute(key, Number.isFinite(points[0][i]) ? points[0][i] : -1e4));
};

postx.live.pixel = ([log, a, b], value) => a + b * (log ? Math.log10(value) : value);

// The points of a curve: low to high, evenly or by equal factors.
postx.live.curve = ({ low, high, n, log }) =>
  Array.from({ length: n }, (_, k) => (log ? low * (high / low) ** (k / (n - 1)) : low + (high - low) * (k / (n - 1))));

// A path through points; it is torn where a point is nowhere. What leaves the paper need not be far away.
postx.live.line = (points) => {
  let pen = "M";
  return points
    .map((point) => {
      if (!point.every((n) => !Number.isNaN(n))) {
        pen = "M";
        return "";
      }
      const told = pen + point.map((n) => Math.max(-9e3, Math.min(9e3, n)).toFixed(2)).join(" ");
      pen = "L";
      return told;
    })
    .join("");
};

// The numbers of a slider: given, or by a rule and rounded to 3 digits; and their texts: given, or a format and a unit.
postx.live.numbers = (values) =>
  Array.isArray(values) ? values : [...new Set(postx.live.curve(values).map((n) => Number(postx.live.format(n, ".3g"))))];
postx.live.stops = ({ texts, spec, unit }, numbers) =>
  texts ?? numbers.map((value) => postx.live.format(value, spec) + (unit ? ` ${unit}` : ""));

// A number as Python writes it by ",.2f", ".3g" or ".0%". Python rounds a tie to the even digit, JavaScript away from 0.
postx.live.format = (value, spec) => {
  const [, comma, digits, kind] = spec.match(/^(,?)\.(\d+)([fg%])$/);
  if (kind === "%") return postx.live.format(value * 100, `${comma}.${digits}f`) + "%";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value < 0 ? "-inf" : "inf";
  const size = Math.abs(value);
  const told = kind === "g" ? postx.live.general(size, Math.max(1, digits)) : postx.live.even(size, digits, size.toFixed(digits));
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  return sign + (comma ? told.replace(/\B(?<!\.\d*)(?=(\d{3})+(?!\d))/g, ",") : told);
};

// What was rounded to `digits` behind the point (before it, if negative), one unit lower if it was a tie and is odd.
postx.live.even = (size, digits, told, places = digits) => {
  const unit = 10 ** -digits;
  const tie = digits < 0 ? size % unit === unit / 2 : Math.abs((size * 2 ** (Number(digits) + 1)) % 2) === 1;
  return tie && /[13579]$/.test(told) ? (Number(told) - 10 ** -places).toFixed(places) : told;
};

postx.live.general = (size, digits) => {
  const [rounded, power] = size.toExponential(digits - 1).split("e").map((part, i) => (i ? Number(part) : part));
  const lead = postx.live.even(size, digits - 1 - power, rounded, digits - 1);
  const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (power >= -4 && power < digits) return short(Number(`${lead}e${power}`).toFixed(digits - 1 - power));
  return `${short(lead)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
};
