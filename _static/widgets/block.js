// Mamba's block: boxes that open to what they are, reading a text or writing one token. What is said stands in
// postx/widgets/block.py; tests/explore/test_block_widget.py holds the sums here to the package's layer and costs.
(() => {
  // What a box has and moves: weights in 16 bits are read for every token that is written, and what is kept is read
  // and written back. Shares are of the whole block.
  const numbers = (boxes) => {
    const each = boxes.map(({ weights, flops, kept, item }) => {
      const state = 2 * kept * item;
      return { weights, flops, held: kept * item, state, moved: 2 * weights + state };
    });
    const sum = (name) => each.reduce((total, box) => total + box[name], 0);
    const all = Object.fromEntries(Object.keys(each[0]).map((name) => [name, sum(name)]));
    const share = (box) => Object.fromEntries(Object.keys(all).map((name) => [name, box[name] / all[name]]));
    return { each: each.map((box) => ({ ...box, share: share(box), intensity: box.flops / (box.moved || 1) })), all };
  };

  const whole = (x) => Math.round(x).toLocaleString("en-US");
  const part = (x) => (x > 0 && x < 0.01 ? "below 1%" : `${Math.round(100 * x)}%`);
  const bytes = (x) => (x < 1e6 ? `${whole(x / 1e3)} kB` : `${(x / 1e6).toFixed(1)} MB`);

  // The lines of a box: [name, value]. T is the text's length where a text is read.
  const lines = (box, has, writing) => {
    const shape = (list) => list.map(([name, wide]) => `${name} [${writing ? "" : "T, "}${wide}]`).join(", ");
    const rows = [["takes", shape(box.into)], ["gives", shape(box.out)]];
    if (!writing)
      return [
        ...rows,
        ["weights", `${whole(has.weights)} (${part(has.share.weights)} of the block)`],
        ["FLOPs per token", has.flops ? `${whole(has.flops)} (${part(has.share.flops)})` : "not counted"],
      ];
    const kept = box.kept ? `${whole(box.kept)} numbers, ${bytes(has.held)}, at any length` : "nothing";
    const moved = has.moved ? `${bytes(has.moved)} (${part(has.share.moved)} of the block)` : "none";
    const intensity = has.moved ? has.intensity.toFixed(1) : "–";
    return [...rows, ["keeps", kept], ["moves per token", moved], ["FLOPs per byte", intensity]];
  };

  const summary = (all, { L, model }, writing) =>
    writing
      ? `The block moves ${bytes(all.moved)} for each token, ${bytes(all.state)} of it what it keeps. ` +
        `${L} blocks keep ${bytes(L * all.held)} for each text, however long it is.`
      : `The block: ${whole(all.weights)} weights, ${whole(all.flops)} FLOPs per token, however long the text is. ` +
        `${L} blocks, their norms and the embedding: ${whole(model)} weights, as published.`;

  const area = (row, column, wide) => `grid-area:${row + 1}/${column + 1}/span 1/span ${wide}`;

  let figures = 0;
  const make = (figure, data) => {
    const id = ++figures; // radio buttons of two figures on one page are two groups
    const { each, all } = numbers(data.boxes);
    const tool = document.createElement("div");
    tool.className = "pk";
    // A column that is null is all of them.
    const wire = ([column, from, to]) =>
      `<i style="grid-area:${from + 1}/${(column ?? 0) + 1}/${to + 2}/span ${column === null ? 5 : 1};` +
      `margin-block:${from ? 0 : 0.7}rem ${to < 8 ? 0 : 0.7}rem"></i>`; // from and to the middle of its letter
    const label = ([text, row, column]) =>
      `<span style="${area(row, column ?? 0, column === null ? 5 : 1)}">${text}</span>`;
    const button = ({ title, place, holds }) =>
      `<button type="button" aria-pressed="false" style="${area(...place)}"><span>${title}</span>` +
      `${holds ? `<small>${holds}</small>` : ""}<b></b></button>`;
    const view = (name, on) => `<label><input type="radio" name="view${id}"${on ? " checked" : ""}>${name}</label>`;
    tool.innerHTML =
      `<fieldset><legend>View</legend>${view("reading a text", true)}${view("writing one token")}</fieldset>` +
      `<div class="pk-both"><div class="pk-draw" style="grid-template-columns:${data.columns.join("fr ")}fr">` +
      [...data.wires.map(wire), ...data.labels.map(label), ...data.boxes.map(button)].join("") +
      `</div><div class="pk-said"><output></output><p></p><code></code><dl></dl><p class="pk-sum"></p></div></div>`;
    figure.querySelector("svg").replaceWith(tool);
    const at = (selector) => tool.querySelector(selector);
    const buttons = [...tool.querySelectorAll("button")];
    let open = 0;

    const draw = () => {
      const writing = tool.querySelectorAll("input")[1].checked;
      tool.classList.toggle("pk-writing", writing);
      const [box, has] = [data.boxes[open], each[open]];
      buttons.forEach((one, i) => {
        one.setAttribute("aria-pressed", i === open);
        one.querySelector("b").style.width = `${100 * each[i].share[writing ? "moved" : "weights"]}%`;
      });
      const rows = lines(box, has, writing);
      at("output").textContent = `${box.title}: ${rows[2].join(" ")}; ${rows[3].join(" ")}.`;
      at("p").innerHTML = `<b>${box.title}.</b> ${box.does}`;
      at("code").textContent = box.code;
      at("dl").innerHTML = rows.map(([name, value]) => `<dt>${name}</dt><dd>${value}</dd>`).join("");
      at(".pk-sum").textContent = summary(all, data, writing);
    };
    buttons.forEach((one, i) => {
      one.addEventListener("click", () => ((open = i), draw()));
      one.addEventListener("keydown", (event) => {
        const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
        if (!step || !buttons[i + step]) return;
        event.preventDefault();
        buttons[i + step].focus();
        buttons[i + step].click();
      });
    });
    tool.addEventListener("change", draw);
    draw();
  };

  window.postx.block = { numbers, lines, summary };
  window.postx.widget("block", make);
})();
