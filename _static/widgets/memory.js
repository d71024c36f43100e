// A memory one paints on: pictures are written into a table S under keys, and read back. What it means stands in
// postx/widgets/memory.py; tests/explore/test_memory_widget.py holds the numbers here to the package's mixers.
(() => {
  const SIDE = 8;
  const MANY = 512;
  const NAMES = ["A", "B", "C"];
  const range = (n) => [...Array(n).keys()];
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const pixels = (drawn) => [...drawn].map((pixel) => (pixel === "#" ? 1 : -1));

  // A, B and C share row 0, in the proportion that makes the product of two of them `alike`; each has one more.
  const key = (name, rows, alike) => {
    const own = NAMES.indexOf(name);
    if (own < 0) return window.postx.unit(`key ${name}`, rows);
    return range(rows).map((row) => (row === 0 ? Math.sqrt(alike) : row === own + 1 ? Math.sqrt(1 - alike) : 0));
  };
  const stranger = (number, side = SIDE) => {
    const next = window.postx.numbers(`picture ${number}`);
    return range(side * side).map(() => (next() > 0.5 ? 1 : -1));
  };
  // A drawing of 8 by 8 with more or fewer pixels; four that become one are ink where two of them are.
  const scaled = (v, side) =>
    range(side * side).map((i) => {
      const [row, column] = [Math.floor(i / side), i % side].map((at) => Math.floor((at * SIDE) / side));
      const four = [0, 1, SIDE, SIDE + 1].map((step) => v[row * SIDE + column + step]);
      return side >= SIDE ? v[row * SIDE + column] : four.filter((x) => x > 0).length >= 2 ? 1 : -1;
    });
  const value = ([name, v], side) => (NAMES.includes(name) ? scaled(v, side) : stranger(name, side));

  // Is the picture that was last written under a key the nearest to y, of 512? All pictures are equally long.
  const recognized = (writes, presets, asked, y, side = SIDE) => {
    const numbers = new Set(writes.map(([name]) => name));
    const known = [...writes.map((write) => value(write, side)), ...presets.map((v) => scaled(v, side))];
    for (let number = 0; known.length < MANY; number++)
      if (!numbers.has(String(number))) known.push(stranger(number, side));
    const scores = known.map((v) => dot(v, y));
    const nearest = known[scores.indexOf(Math.max(...scores))];
    const last = value(writes.findLast(([name]) => name === asked), side);
    return nearest.every((x, i) => x === last[i]);
  };

  const read = (S, k) => range(S[0].length).map((column) => k.reduce((sum, x, row) => sum + x * S[row][column], 0));
  const replay = (writes, { rows, alike, rule, fade, side = SIDE }) => {
    const S = range(rows).map(() => Array(side * side).fill(0));
    for (const write of writes) {
      const [name, v] = [write[0], value(write, side)];
      const k = key(name, rows, alike);
      const keep = rule === "fade" ? fade : 1;
      const there = rule === "delta" ? read(S, k) : null; // what stands under the key goes out first
      S.forEach((row, r) => row.forEach((x, c) => (row[c] = keep * x + k[r] * (there ? v[c] - there[c] : v[c]))));
    }
    return S;
  };

  // 0 is paper, 1 is ink; what was never written is in between.
  const shade = (x, most) => (1 + Math.max(-1, Math.min(1, x / most))) / 2;
  const square = (v, says) =>
    `<svg viewBox="0 0 ${Math.sqrt(v.length)} ${Math.sqrt(v.length)}" role="img" aria-label="${says}" ` +
    `shape-rendering="crispEdges">${v
      .map((x, i) => [i % Math.sqrt(v.length), Math.floor(i / Math.sqrt(v.length)), shade(x, 1)])
      .map(([x, y, ink]) => `<rect x="${x}" y="${y}" width="1" height="1" fill-opacity="${ink}"/>`)
      .join("")}</svg>`;

  // Every row of the table as a picture of its own, in a square of them.
  const tiles = (canvas, S) => {
    const [side, wide] = [Math.sqrt(S.length), Math.sqrt(S[0].length)];
    canvas.width = canvas.height = side * wide + side - 1;
    const most = Math.max(...S.map((row) => Math.max(...row.map(Math.abs)))) || 1;
    const brush = canvas.getContext("2d");
    S.forEach((row, r) =>
      row.forEach((x, i) => {
        brush.fillStyle = `rgba(0, 0, 0, ${shade(x, most)})`;
        const [left, top] = [r % side, Math.floor(r / side)].map((at) => at * (wide + 1));
        brush.fillRect(left + (i % wide), top + Math.floor(i / wide), 1, 1);
      })
    );
  };

  const buttons = (name, labels) =>
    labels.map((label) => `<button type="button" name="${name}" value="${label}">${label}</button>`).join("");
  const choice = (legend, name, pairs, on) => {
    const checked = (value) => (value === String(on) ? " checked" : "");
    const radio = ([value, label]) =>
      `<label><input type="radio" name="${name}" value="${value}"${checked(value)}>${label}</label>`;
    return `<fieldset><legend>${legend}</legend>${pairs.map(radio).join("")}</fieldset>`;
  };
  const same = (values) => values.map((value) => [String(value), String(value)]);

  const drawing = () => {
    const cell = (r, c) => `<div role="gridcell" tabindex="-1" aria-label="row ${r + 1}, column ${c + 1}"></div>`;
    const rows = range(SIDE).map((r) => `<div role="row">${range(SIDE).map((c) => cell(r, c)).join("")}</div>`);
    const says = "A picture to draw: arrow keys move, the space bar paints";
    const grid = `role="grid" aria-multiselectable="true" aria-label="${says}"`;
    return `<div class="pw-paper" ${grid}>${rows.join("")}</div>`;
  };

  const layout = (id, data) =>
    choice("Rule", `rule${id}`, Object.entries(data.rules).map(([rule, told]) => [rule, told.title]), data.rule) +
    choice("Rows of the table (K)", `rows${id}`, same(data.choices), data.rows) +
    choice("Pixels of a picture (V)", `side${id}`, data.sides.map((side) => [String(side), `${side} × ${side}`]), SIDE) +
    `<div class="px-controls"><label class="px-row"><span class="px-name">likeness of the keys</span>` +
    `<input type="range" name="alike" min="0" max="1" step="0.05" value="${data.alike}">` +
    `<span class="px-value"></span></label></div><div class="pw-three"><section><b>Draw</b>${drawing()}` +
    `<p>${buttons("preset", [...Object.keys(data.presets), "clear"])}</p>` +
    `<p>write under ${buttons("write", NAMES)}</p></section>` +
    `<section><b>Table</b><canvas role="img"></canvas><p class="pw-rows"></p>` +
    `<p>${buttons("strangers", ["write 8 strangers", "write 64"])}${buttons("empty", ["empty it"])}</p></section>` +
    `<section><b>Read</b><div class="pw-read"></div>` +
    `${choice("with", `asked${id}`, same(NAMES), "A")}</section></div>` +
    `<output class="px-readout" aria-live="polite"></output><p class="pw-because"></p>`;

  // What a read has to do with the picture that was last written under its key.
  const say = (writes, presets, rows, asked, y) => {
    const pairs = `${writes.length} ${writes.length === 1 ? "pair" : "pairs"} in ${rows} rows.`;
    const [side, write] = [Math.sqrt(y.length), writes.findLast(([name]) => name === asked)];
    if (!write) return `${pairs} Nothing was written under ${asked}; the table answers all the same.`;
    const last = value(write, side);
    const error = Math.sqrt(y.reduce((sum, x, i) => sum + (x - last[i]) ** 2, 0)) / side;
    const wrong = last.filter((x, i) => x * y[i] <= 0).length;
    const found = recognized(writes, presets, asked, y, side) ? "the right one" : "a wrong one";
    return (
      `${pairs} A read with ${asked} is off by ${error.toFixed(2)} times what was last written there; ` +
      `${wrong} of ${y.length} pixels are on the wrong side of gray. Nearest of ${MANY} pictures: ${found}.`
    );
  };

  let figures = 0;
  const make = (figure, data) => {
    const id = ++figures; // radio buttons of two figures on one page are two groups
    const tool = document.createElement("div");
    tool.className = "pw";
    tool.innerHTML = layout(id, data);
    figure.querySelector("svg").replaceWith(tool);
    const at = (selector) => tool.querySelector(selector);
    const on = (name) => at(`[name=${name}${id}]:checked`).value;
    const paper = [...tool.querySelectorAll("[role=gridcell]")];
    const presets = Object.values(data.presets).map(pixels);
    let writes = data.start.map(([name, drawn]) => [name, pixels(data.presets[drawn])]);

    const inked = (cell) => cell.getAttribute("aria-selected") === "true";
    const paint = (cell, ink) => cell.setAttribute("aria-selected", ink);
    const put = (v) => paper.forEach((cell, i) => paint(cell, v[i] > 0));

    const draw = () => {
      const [rows, rule, asked, slider] = [Number(on("rows")), on("rule"), on("asked"), at("[name=alike]")];
      const alike = Number(slider.value);
      slider.nextElementSibling.textContent = alike.toFixed(2);
      slider.setAttribute("aria-valuetext", alike.toFixed(2));
      const S = replay(writes, { rows, alike, rule, fade: data.fade, side: Number(on("side")) });
      const y = read(S, key(asked, rows, alike));
      tiles(at("canvas"), S);
      at("canvas").setAttribute("aria-label", `The ${rows} rows of the table, each drawn as a picture`);
      at(".pw-rows").textContent = `row 1: shared; 2 to 4: of A, B, C${rows > 4 ? "; the rest: of strangers" : ""}`;
      const ink = y.filter((x) => x > 0).length;
      at(".pw-read").innerHTML = square(y, `A read with ${asked} gives back: ${ink} of ${y.length} pixels nearer to ink`);
      at("output").textContent = say(writes, presets, rows, asked, y);
      at(".pw-because").textContent = data.rules[rule].because;
    };

    const does = {
      preset: ({ value }) => put(pixels(data.presets[value] ?? ".".repeat(SIDE * SIDE))),
      write: ({ value }) => writes.push([value, paper.map((cell) => (inked(cell) ? 1 : -1))]),
      empty: () => (writes = []),
      strangers: (button) => {
        const there = writes.filter(([name]) => !NAMES.includes(name)).length;
        range(Number(button.value.split(" ")[1])).forEach((i) => writes.push([String(there + i)]));
      },
    };
    tool.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      does[button.name](button);
      draw();
    });
    tool.addEventListener("input", draw);

    const grid = at(".pw-paper");
    const stand = (cell) => {
      paper.forEach((other) => (other.tabIndex = other === cell ? 0 : -1));
      cell.focus();
    };
    const moves = { ArrowUp: -SIDE, ArrowDown: SIDE, ArrowLeft: -1, ArrowRight: 1 };
    grid.addEventListener("keydown", (event) => {
      const here = paper.indexOf(event.target);
      if (event.key === " " || event.key === "Enter") paint(event.target, !inked(event.target));
      else if (event.key in moves) {
        const next = here + moves[event.key];
        const turned = Math.abs(moves[event.key]) === 1 && Math.floor(next / SIDE) !== Math.floor(here / SIDE);
        if (paper[next] && !turned) stand(paper[next]);
      } else return;
      event.preventDefault();
    });
    // A stroke goes on as it began: with ink or with paper.
    let stroke = null;
    grid.addEventListener("pointerdown", (event) => {
      if (!paper.includes(event.target)) return;
      event.target.releasePointerCapture(event.pointerId); // a finger would keep all moves on the first cell
      stroke = !inked(event.target);
      paint(event.target, stroke);
    });
    grid.addEventListener("pointerover", ({ target }) => {
      if (stroke !== null && paper.includes(target)) paint(target, stroke);
    });
    for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, () => (stroke = null));

    paper[0].tabIndex = 0;
    put(pixels(data.presets[data.start.at(-1)[1]]));
    draw();
  };

  window.postx.memory = { key, stranger, scaled, replay, read, recognized, pixels };
  window.postx.widget("memory", make);
})();
