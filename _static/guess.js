// The guess before the answer (_ext/guess.py): a field, then the number beside what was typed, and a tally at the end of
// the chapter. Guesses are kept in this browser, where it has a place for them; nothing leaves it.
const postxGuess = {
  // "16k", "49,152", "1.5M", "10^5", "6e3", "0,7"
  parse: (text) => {
    const found = text
      .trim()
      .replace(/^(\d+),(\d{1,2})$/, "$1.$2")
      .replace(/[\s,_]/g, "")
      .match(/^(\d*\.?\d+)(?:(e|\*?10\^|\^)([+-]?\d+))?([kmb%]?)/i);
    if (!found) return NaN;
    const [, lead, how, power, unit] = found;
    const number = how === "^" ? Number(lead) ** power : Number(lead) * 10 ** (power ?? 0);
    return number * { k: 1e3, m: 1e6, b: 1e9 }[unit.toLowerCase()] || number;
  },
  // How far a guess is from the answer: 0 right, 1 within a factor of two, 2 further.
  judge: (guess, answer) => {
    const ratio = Math.max(guess / answer, answer / guess);
    return ratio <= 1.1 ? 0 : ratio <= 2 ? 1 : 2;
  },
  say: (guess, { answer, written, unit }) => {
    const ratio = Math.max(guess / answer, answer / guess);
    const times = ratio < 10 ? ratio.toFixed(1) : Math.round(ratio).toLocaleString("en");
    const far = ["right", "close", `${times} times too ${guess > answer ? "high" : "low"}`][postxGuess.judge(guess, answer)];
    const gap = unit === "%" ? "" : " ";
    return `You: ${guess.toLocaleString("en", { maximumSignificantDigits: 4 })}${gap}${unit}. Here: ${written}${gap}${unit}; ${far}.`;
  },
  // Where two numbers stand on a scale by powers of ten, from 0 to 1, and its ends.
  scale: (guess, answer) => {
    const low = Math.floor(Math.log10(Math.min(guess, answer)) - 0.15);
    const high = Math.ceil(Math.log10(Math.max(guess, answer)) + 0.15);
    return { low, high, at: [guess, answer].map((n) => (Math.log10(n) - low) / (high - low)) };
  },
  tally: (judged, of) =>
    `Your guesses on this page: ${judged.length} of ${of}` +
    (judged.length ? `; ${judged.filter((j) => j === 0).length} right, ${judged.filter((j) => j === 1).length} close.` : "."),
};
window.postx = Object.assign(window.postx ?? {}, { guess: postxGuess });

addEventListener("DOMContentLoaded", () => {
  const { parse, judge, say, scale, tally } = postxGuess;
  const own = new Map(); // what this page knows, also where the browser keeps nothing
  const keep = (id, value) => {
    if (value === null) own.delete(id);
    else own.set(id, value);
    try {
      if (value === null) localStorage.removeItem(`postx guess ${id}`);
      else localStorage.setItem(`postx guess ${id}`, value);
    } catch {} // storage may be forbidden, as in some private windows
  };
  const kept = (id) => {
    try {
      return own.get(id) ?? localStorage.getItem(`postx guess ${id}`);
    } catch {
      return own.get(id);
    }
  };
  const make = (name, attributes = {}, ...inside) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...inside);
    return element;
  };
  const boxes = [...document.querySelectorAll(".px-guess")];
  const end = make("p", { className: "px-guesses" });
  const count = make("span", { role: "status" });
  const forget = make("button", { type: "button", textContent: "Forget them" });
  end.append(count, " ", forget);

  // The guess stands in the picture, and a moment later the truth beside it.
  const reveal = (aim, guess, { id, answer, written }, fresh) => {
    const truth = [answer, written];
    if (!fresh || matchMedia("(prefers-reduced-motion: reduce)").matches) return aim.show(guess, truth);
    aim.show(guess);
    setTimeout(() => Number(kept(id)) === guess && aim.show(guess, truth), 700);
  };
  // A button that lets the guess be put in the picture: by a tap there, or by a slider along its axis.
  const pointer = (aim, question, field, form, back) => {
    const button = make("button", { type: "button", textContent: "Point in the picture" });
    const along = make("input", { type: "range", min: 0, max: 200, value: 100, hidden: true });
    along.setAttribute("aria-label", `Along the axis: ${question.ask}`);
    button.setAttribute("aria-pressed", "false");
    const put = (number) => {
      field.value = String(number);
      along.value = aim.stop(number);
      along.setAttribute("aria-valuetext", `${number.toLocaleString("en")} ${question.unit}`.trim());
      aim.show(number);
    };
    const end = () => {
      along.hidden = true;
      button.setAttribute("aria-pressed", "false");
      aim.end();
    };
    button.addEventListener("click", () => {
      if (!along.hidden) return back();
      along.hidden = false;
      button.setAttribute("aria-pressed", "true");
      aim.begin(put);
      put(postxGuess.parse(field.value) || aim.at(100));
      along.focus({ preventScroll: true });
      aim.figure.scrollIntoView({ block: "nearest" });
    });
    along.addEventListener("input", () => put(aim.at(Number(along.value))));
    along.addEventListener("keydown", (event) => event.key === "Escape" && (button.click(), button.focus()));
    form.append(button, along);
    return { end };
  };

  const shows = boxes.map((box) => {
    const question = JSON.parse(box.dataset.guess);
    const details = box.nextElementSibling;
    const field = make("input", { type: "text", inputMode: "decimal", autocomplete: "off", size: 9 });
    const said = make("p", { className: "px-said-guess", role: "status" });
    const line = make("div", { className: "px-scale", hidden: true });
    line.setAttribute("aria-hidden", "true");
    const words = make("label", {}, `Guess first: ${question.ask} `, field, ` ${question.unit}`);
    const form = make("form", {}, words, " ", make("button", { textContent: "Compare" }));
    const aim = box.dataset.axis && postx.aim.of(box, box.dataset.axis);
    const point = aim && pointer(aim, question, field, form, () => show());
    const show = (fresh = false) => {
      const guess = Number(kept(question.id));
      said.textContent = guess ? say(guess, question) : "";
      field.value = guess ? String(guess) : "";
      point?.end();
      if (aim) return reveal(aim, guess, question, fresh);
      line.hidden = !guess;
      if (!guess) return;
      const { low, high, at } = scale(guess, question.answer);
      line.replaceChildren(
        ...ticks(low, high).map((power) => mark((power - low) / (high - low), "px-tick", ten(power))),
        mark(at[1], at[1] < at[0] ? "px-left" : "px-right", "here"),
        mark(at[0], at[1] < at[0] ? "px-right px-you" : "px-left px-you", "you"),
      );
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const guess = parse(field.value);
      if (!(guess > 0 && guess < Infinity)) {
        said.textContent = "A number above 0, please, such as 16k or 0.5.";
        return;
      }
      keep(question.id, String(guess));
      show(true);
      sum();
      if (details?.localName === "details") details.open = true;
    });
    box.append(form, said, line);
    box.hidden = false;
    return { question, show };
  });
  const mark = (at, kind, words) => {
    const one = make("span", { className: kind }, words);
    one.style.left = `${100 * at}%`;
    return one;
  };
  const ticks = (low, high) => {
    const every = Math.ceil((high - low) / 4); // five numbers at most, so that a phone has room for them
    return Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, i) => low + i * every);
  };
  const ten = (power) => (10 ** power).toLocaleString("en", { maximumSignificantDigits: 1 });
  const sum = () => {
    const judged = shows
      .map(({ question }) => [Number(kept(question.id)), question.answer])
      .filter(([guess]) => guess)
      .map(([guess, answer]) => judge(guess, answer));
    count.textContent = tally(judged, boxes.length);
    forget.hidden = !judged.length;
  };
  forget.addEventListener("click", () => {
    shows.forEach(({ question, show }) => {
      keep(question.id, null);
      show();
    });
    sum();
  });
  shows.forEach(({ show }) => show());
  sum();
  (document.querySelector("article.bd-article") ?? document.body).append(end);
});
