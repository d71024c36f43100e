// A guess in the picture itself: where a question belongs to a figure on an axis, the guess and then the truth stand on
// that axis (guess.js asks, and keeps; the figure tells where its numbers lie, postx/explore/axes.py).
const postxAim = {
  // A number's place on an axis of [log, a, b], and the number at a place, with no more digits than a hand can mean.
  place: ([log, a, b], number) => a + b * (log ? Math.log10(number) : number),
  number: ([log, a, b], place) => {
    const t = (place - a) / b;
    return Number((log ? 10 ** t : t).toPrecision(log ? 2 : 3));
  },
  // The two ends of an axis in the picture, that of the small numbers first.
  ends: ([, , b], [left, top, width, height], axis) => {
    const ends = axis === "x" ? [left, left + width] : [top, top + height];
    return b < 0 ? ends.reverse() : ends;
  },
  // A mark stays on the axis: what lies beyond stands at its end, with an arrow that says so.
  mark: (scale, box, axis, number) => {
    const at = postxAim.place(scale, number);
    const [low, high] = postxAim.ends(scale, box, axis);
    const share = (at - low) / (high - low);
    const arrows = axis === "x" ? ["← ", " →"] : ["↓ ", " ↑"];
    return { at: share < 0 ? low : share > 1 ? high : at, arrow: share < 0 ? arrows[0] : share > 1 ? arrows[1] : "" };
  },
};
window.postx = Object.assign(window.postx ?? {}, { aim: postxAim });

// What guess.js needs of the figure before a question: `show` draws the marks, `begin` takes a place by hand, `end`
// leaves it. Null where the figure has no such axis.
postxAim.of = (box, axis) => {
  const figures = [...document.querySelectorAll("figure.px-fig:not(.px-widget)")];
  const figure = figures.filter((each) => each.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING).pop();
  if (!figure?.dataset.axes) return null;
  const [x, y, area] = JSON.parse(figure.dataset.axes);
  const scale = axis === "x" ? x : y;
  if (!scale) return null;
  const [left, top, width, height] = area;
  const picture = figure.querySelector("svg");
  const make = (name, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const marks = picture.appendChild(make("g", { class: "px-aimed", "aria-hidden": "true" }));
  const ends = postxAim.ends(scale, area, axis);

  // A line across the plot and its words: of two marks on x in two rows, of two on y on either side of their lines.
  const line = (number, words, kind, second) => {
    const { at, arrow } = postxAim.mark(scale, area, axis, number);
    const told = arrow.startsWith(" ") ? words + arrow : arrow + words;
    const group = make("g", { class: kind });
    if (axis === "x") {
      const far = at > left + width * 0.6;
      const text = { x: at + (far ? -5 : 5), y: top + (second ? 25 : 11), "text-anchor": far ? "end" : "start" };
      group.append(make("path", { d: `M${at} ${top}V${top + height}` }), make("text", text, told));
    } else {
      const text = { x: left + width - 4, y: at + (second ? 13 : -5), "text-anchor": "end" };
      group.append(make("path", { d: `M${left} ${at}H${left + width}` }), make("text", text, told));
    }
    return group;
  };
  const spoken = (number) => number.toLocaleString("en", { maximumSignificantDigits: 4 });

  // `truth` is [number, as it is written]; without it only the guess stands there.
  const show = (guess, truth) => {
    marks.replaceChildren();
    if (!guess) return;
    const below = axis === "y" && truth && postxAim.place(scale, guess) > postxAim.place(scale, truth[0]);
    marks.append(line(guess, `you: ${spoken(guess)}`, "px-you", below));
    if (truth) marks.append(line(truth[0], `here: ${truth[1]}`, "px-here", axis === "x" || !below));
  };

  // A tap, or a mouse that drags, puts the guess; a finger that moves scrolls the page.
  let field = null;
  const begin = (put) => {
    end();
    field = make("rect", { class: "px-aim", x: left, y: top - 4, width, height: height + 8 });
    const to = (event) => {
      const frame = picture.getBoundingClientRect();
      const share = axis === "x" ? (event.clientX - frame.left) / frame.width : (event.clientY - frame.top) / frame.height;
      const size = picture.viewBox.baseVal[axis === "x" ? "width" : "height"];
      const [low, high] = [...ends].sort((a, b) => a - b);
      const number = postxAim.number(scale, Math.min(high, Math.max(low, share * size)));
      if (number > 0) put(number);
    };
    field.addEventListener("click", to);
    field.addEventListener("pointermove", (event) => event.pointerType === "mouse" && event.buttons === 1 && to(event));
    picture.append(field);
  };
  const end = () => {
    field?.remove();
    field = null;
  };
  // Stop `n` of 0 to 200 along the axis, and the stop of a number.
  const at = (n) => postxAim.number(scale, ends[0] + ((ends[1] - ends[0]) * n) / 200);
  const stop = (number) => Math.round(200 * ((postxAim.mark(scale, area, axis, number).at - ends[0]) / (ends[1] - ends[0])));
  return { show, begin, end, at, stop, figure };
};
