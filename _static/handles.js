// The handles of a figure: sliders, rows of radio buttons, a button that plays, and a grip in the picture itself.
// `move(places)` is called with the stop of each; `groups` are what moves, for the ghost of the picture before.
postx.handles = (figure, data, texts, groups, move) => {
  const rows = [...figure.querySelectorAll(".px-row")].map((row, i) => {
    const inputs = [...row.querySelectorAll("input")];
    const [input] = inputs;
    const radio = input.type === "radio";
    return {
      inputs,
      place: () => (radio ? inputs.findIndex((e) => e.checked) : Number(input.value)),
      tell: (place) => {
        if (radio) return;
        input.setAttribute("aria-valuetext", texts[i][place]);
        row.querySelector(".px-value").textContent = texts[i][place];
      },
    };
  });
  const places = () => rows.map((row) => row.place());
  const ghost = data.ghost && postx.ghost(groups);
  const grip = data.drag && postx.grip(figure, data.drag, rows[data.drag.slider].inputs[0], texts[data.drag.slider]);
  let last = rows.map(({ inputs }) => inputs.findIndex((e) => e.defaultChecked));
  rows.forEach(({ inputs: [input] }, i) => input.type === "range" && (last[i] = Number(input.defaultValue)));

  const update = () => {
    ghost?.();
    last = places();
    rows.forEach((row, i) => row.tell(last[i]));
    move(last);
    grip?.(last[data.drag.slider]);
  };
  rows.forEach(({ inputs }) =>
    inputs.forEach((input) => {
      input.disabled = false;
      input.addEventListener("input", update);
    }),
  );
  figure.querySelectorAll(".px-play").forEach(postx.play);
  // A reload, or a way back to the page, keeps where sliders stood; browsers differ in when they say so.
  const catchUp = () => places().some((place, i) => place !== last[i]) && update();
  catchUp();
  addEventListener("pageshow", catchUp);
};

postx.put = (input, place) => {
  if (Number(input.value) === place) return;
  input.value = place;
  input.dispatchEvent(new Event("input", { bubbles: true }));
};

// ▶ moves a slider that is time, stop by stop, once from where it stands (or from the first) to the end. Who asked the
// system for less motion gets one stop for each press.
postx.play = (button) => {
  const input = button.parentElement.querySelector("input");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const name = input.getAttribute("aria-label");
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "▶";
    button.setAttribute("aria-label", (still.matches ? "Next: " : "Play: ") + name);
  };
  const step = () => {
    if (!input.isConnected || Number(input.value) >= Number(input.max)) return stop();
    postx.put(input, Number(input.value) + 1);
    if (Number(input.value) >= Number(input.max)) stop();
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(input.value) >= Number(input.max)) postx.put(input, 0);
    else step();
    if (still.matches || Number(input.value) >= Number(input.max)) return stop();
    timer = setInterval(step, Math.min(800, Math.max(120, 6000 / Number(input.max))));
    button.textContent = "❚❚";
    button.setAttribute("aria-label", "Pause: " + name);
  });
  input.addEventListener("pointerdown", () => timer && stop()); // the hand takes over
  still.addEventListener("change", stop);
  button.disabled = false;
  stop();
};

// A grip on the x axis; dragging anywhere in the plot moves the slider to the stop that is nearest. Up and down, a phone
// still scrolls the page.
postx.grip = (figure, { x, box: [left, top, width, height] }, input, texts) => {
  const picture = figure.querySelector("svg");
  const make = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return picture.appendChild(element);
  };
  const foot = top + height;
  const hand = make("g", { class: "px-grip", "aria-hidden": "true" });
  hand.append(
    make("path", { d: `M0 ${top}V${foot}` }),
    make("circle", { cy: foot, r: 5 }),
    make("text", { y: foot - 9, "font-size": 10.5 }),
  );
  const field = make("rect", { class: "px-field", x: left, y: top, width, height: height + 8 });
  const to = (event) => {
    const at = ((event.clientX - picture.getBoundingClientRect().left) / picture.clientWidth) * picture.viewBox.baseVal.width;
    postx.put(input, postx.nearest(x, at));
  };
  // A finger that goes up or down scrolls the page: it has the grip once it goes sideways, or when it was only a tap.
  let begun = null;
  field.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    begun = { x: event.clientX, y: event.clientY, held: event.pointerType !== "touch" };
    field.setPointerCapture(event.pointerId);
    hand.classList.toggle("px-held", begun.held);
    if (begun.held) to(event);
  });
  field.addEventListener("pointermove", (event) => {
    if (!begun) return;
    const [dx, dy] = [event.clientX - begun.x, event.clientY - begun.y].map(Math.abs);
    begun.held ||= dx > 6 && dx > dy;
    hand.classList.toggle("px-held", begun.held);
    if (begun.held) to(event);
  });
  const end = (event) => {
    if (event.type === "pointerup" && begun && !begun.held) to(event);
    hand.classList.remove("px-held");
    begun = null;
  };
  for (const type of ["pointerup", "pointercancel"]) field.addEventListener(type, end);
  const show = (place) => {
    const words = hand.lastChild;
    const far = x[place] > left + width * 0.8;
    hand.setAttribute("transform", `translate(${x[place]})`);
    words.setAttribute("x", far ? -8 : 8);
    words.setAttribute("text-anchor", far ? "end" : "start");
    words.textContent = texts[place];
  };
  show(Number(input.value));
  return show;
};

postx.nearest = (all, at) => all.reduce((best, one, i) => (Math.abs(one - at) < Math.abs(all[best] - at) ? i : best), 0);

// The picture as it was when the last move began stays behind, pale and without words. A pause begins a new move.
postx.ghost = (groups) => {
  let left = [];
  let then = -Infinity;
  return () => {
    const begins = performance.now() - then > 700;
    then = performance.now();
    if (!begins) return;
    left.forEach((e) => e.remove());
    left = groups.map((group) => {
      const pale = group.cloneNode(true);
      pale.removeAttribute("data-slot");
      pale.setAttribute("class", "px-ghost");
      pale.querySelectorAll("text").forEach((e) => e.remove());
      group.before(pale);
      return pale;
    });
  };
};
