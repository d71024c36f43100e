// The matrix a text makes: M of y = M v for eight mixers. What the numbers mean, and the words that are shown,
// stand in postx/widgets/matrix.py; here is the same algebra, which tests/explore/test_matrix_widget.py holds to it.
(() => {
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const rows = (T, entry) =>
    Array.from({ length: T }, (_, t) => Array.from({ length: T }, (_, i) => (i > t ? 0 : entry(t, i))));
  const shares = (M) => M.map((row) => row.map((x) => x / row.reduce((sum, y) => sum + y, 0)));
  const phi = (x) => x.map((value) => (value > 0 ? value + 1 : Math.exp(value)));

  const split = (text, most) => {
    const words = text.toLowerCase().match(/[\p{L}\p{M}\p{N}'’]+/gu) ?? [];
    return { words: words.slice(0, most), left: Math.max(0, words.length - most) };
  };

  // A table S of K rows whose columns are kept apart by the word they came from: C[i] is what stands there of v_i.
  // Each word lets rows fade (fade: log-decays), takes out beta of what is under its key (erase), and writes.
  const table = ({ q, k, fade, beta = () => 1, erase = false }) => {
    const C = [];
    return q.map((asks, t) => {
      const g = fade(t);
      C.forEach((c) => {
        c.forEach((x, row) => (c[row] = x * Math.exp(Array.isArray(g) ? g[row] : g)));
        if (!erase) return;
        const found = beta(t) * dot(k[t], c);
        c.forEach((x, row) => (c[row] = x - found * k[t][row]));
      });
      C.push(k[t].map((x) => beta(t) * x));
      return q.map((_, i) => (i > t ? 0 : dot(asks, C[i])));
    });
  };

  const fadedRows = (word, K) => {
    const next = window.postx.numbers(`${word}/gate`);
    return Array.from({ length: K }, () => Number(next() > 0.5));
  };

  // M of the mixer `name` for some words, with its knobs `at`: M[t][i] is what y_t takes of v_i.
  const compute = (name, words, at, { fillers, K }) => {
    const T = words.length;
    const q = words.map((word) => window.postx.unit(word, K));
    const k = ["", ...words.slice(0, -1)].map((word) => window.postx.unit(word, K));
    const gate = words.map((word) => (fillers.includes(word) ? at.filler ?? 0.1 : 1));
    const g = gate.map((open) => Math.log(at.keep ?? 1) * open);
    const ways = {
      softmax: () => shares(rows(T, (t, i) => Math.exp((dot(q[t], k[i]) - 1) / at.temperature))),
      linear: () => {
        const [asks, keys] = [q, k].map((all) => all.map((x) => phi(x.map((value) => at.length * value))));
        return shares(rows(T, (t, i) => dot(asks[t], keys[i])));
      },
      retention: () => table({ q, k, fade: () => Math.log(at.keep) }),
      gla: () => {
        const fading = words.map((word) => fadedRows(word, K));
        return table({ q, k, fade: (t) => fading[t].map((here) => g[t] * here) });
      },
      delta: () => table({ q, k, fade: () => 0, beta: () => at.beta, erase: true }),
      gated_delta: () => table({ q, k, fade: (t) => g[t], beta: () => at.beta, erase: true }),
      ssd: () => table({ q, k, fade: (t) => g[t], beta: (t) => gate[t] }),
      hyena: () => {
        const filter = (lag) => Math.exp(-lag / at.window) * Math.cos((Math.PI * lag) / 3);
        return rows(T, (t, i) => (at.gates > 0 ? gate[t] : 1) * filter(t - i) * (at.gates > 1 ? gate[i] : 1));
      },
    };
    return ways[name]();
  };

  // The mark-up below is built from strings; a word of `split` has nothing in it that mark-up could take for its own.
  const number = (x) => (Math.abs(x) < 0.005 ? "0.00" : x.toFixed(2).replace("-", "−"));

  const grid = (words, M) => {
    const most = Math.max(...M.flat().map(Math.abs)) || 1;
    const shade = (x) => `<i class="${x < 0 ? "minus" : "plus"}" style="opacity:${(Math.abs(x) / most) ** 0.75}"></i>`;
    const cell = (x, t, i) => {
      if (i > t) return `<td class="later" tabindex="-1"><i></i><span>later</span></td>`;
      return `<td tabindex="-1">${shade(x)}<span>${number(x)}</span></td>`;
    };
    const head = (scope, more = "") => (word) => `<th scope="${scope}"${more}><b>${word}</b></th>`;
    const asks = words.map(head("row", ' tabindex="-1"'));
    const lines = M.map((row, t) => `<tr>${asks[t]}${row.map((x, i) => cell(x, t, i)).join("")}</tr>`);
    return `<thead><tr><td></td>${words.map(head("col")).join("")}</tr></thead><tbody>${lines.join("")}</tbody>`;
  };

  const say = (words, M, t, i) => {
    const name = (at) => `“${words[at]}” (${at + 1})`;
    if (i > t) return `${name(t)} takes nothing of ${name(i)}: it comes later.`;
    if (i >= 0) return `${name(t)} takes ${number(M[t][i])} of ${name(i)}.`;
    const first = [...Array(t + 1).keys()].sort((a, b) => Math.abs(M[t][b]) - Math.abs(M[t][a])).slice(0, 3);
    return `${name(t)} takes most of ${first.map((at) => `${name(at)}: ${number(M[t][at])}`).join(", ")}.`;
  };

  const knob = (key, { label, least, most, step, start }) =>
    `<label class="px-row"><span class="px-name">${label}</span><input type="range" name="${key}" min="${least}" max="${most}" ` +
    `step="${step}" value="${start}"><span class="px-value"></span></label>`;

  let figures = 0;
  const make = (figure, data) => {
    const group = `mixer${++figures}`; // radio buttons of two figures on one page are two groups
    const tool = document.createElement("div");
    const menu = Object.entries(data.menu).map(([key, { title }]) => {
      const checked = key === data.start ? " checked" : "";
      return `<label><input type="radio" name="${group}" value="${key}"${checked}>${title}</label>`;
    });
    tool.innerHTML =
      `<label class="pm-text">Your text <input type="text" maxlength="160" autocomplete="off" spellcheck="false">` +
      `</label><p class="pm-note" role="status"></p>` +
      `<fieldset class="pm-menu"><legend>Mixer</legend>${menu.join("")}</fieldset><div class="px-controls"></div>` +
      `<div class="pm-both"><div><table role="grid" aria-readonly="true"></table><p class="pm-scale"></p></div>` +
      `<div class="pm-said"><output aria-live="polite"></output><p class="pm-entry"></p>` +
      `<p class="pm-because"></p></div><div class="pm-block"></div></div><p class="pm-honest">${data.honest}</p>`;
    tool.className = "pm";
    figure.querySelector("svg").replaceWith(tool);
    const at = (selector) => tool.querySelector(selector);
    const [input, knobs, board, readout] = ["input", ".px-controls", "table", "output"].map(at);
    let [words, M, here] = [[], [], [11, -1]];

    const cells = () => [...board.tBodies[0].rows].map((row) => [...row.cells]);
    // Which cell the keyboard stands on: one stop for Tab, arrow keys within. Column -1 is the word that asks.
    const stand = (t, i, focus) => {
      here = [Math.min(Math.max(t, 0), words.length - 1), Math.min(Math.max(i, -1), words.length - 1)];
      board.querySelectorAll("[tabindex='0']").forEach((cell) => (cell.tabIndex = -1));
      const cell = cells()[here[0]][here[1] + 1];
      cell.tabIndex = 0;
      if (focus) cell.focus();
      readout.textContent = say(words, M, ...here);
    };

    const draw = () => {
      const name = at(".pm-menu :checked").value;
      const one = data.menu[name];
      const found = split(input.value, data.most);
      const left = found.left === 1 ? "1 word" : `${found.left} words`;
      at(".pm-note").textContent = found.left
        ? `${left} beyond ${data.most} left out.`
        : found.words.length ? "" : "Type a word; the last text stays until then.";
      if (found.words.length) words = found.words;
      const values = {};
      knobs.querySelectorAll("input").forEach((slider) => {
        const { names, step } = one.knobs[slider.name];
        values[slider.name] = Number(slider.value);
        const text = names.length ? names[slider.value] : values[slider.name].toFixed(step < 1 ? 2 : 0);
        slider.nextElementSibling.textContent = text;
        slider.setAttribute("aria-valuetext", text);
      });
      M = compute(name, words, values, data);
      board.innerHTML = grid(words, M);
      board.setAttribute("aria-label", `M of ${one.title}: a row for the word that asks, a column for the word asked`);
      at(".pm-scale").innerHTML =
        `<b class="plus">■</b> adds, <b class="minus">■</b> subtracts; ` +
        `strongest: ${number(Math.max(...M.flat().map(Math.abs)))}.`;
      stand(...here);
    };

    const choose = () => {
      const one = data.menu[at(".pm-menu :checked").value];
      knobs.innerHTML = Object.entries(one.knobs).map(([key, told]) => knob(key, told)).join("");
      at(".pm-block").innerHTML = one.block;
      at(".pm-entry").innerHTML = one.entry;
      at(".pm-because").textContent = one.because;
      draw();
    };

    const placed = (target) => {
      const cell = target.closest("tbody td, tbody th");
      return cell && [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
    };
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    Object.assign(moves, { Home: [0, -data.most], End: [0, data.most] });
    board.addEventListener("keydown", (event) => {
      const way = moves[event.key];
      if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      stand(here[0] + way[0], here[1] + way[1], true);
    });
    for (const kind of ["focusin", "pointerover", "click"])
      board.addEventListener(kind, ({ target }) => placed(target) && stand(...placed(target)));
    input.value = data.text;
    input.addEventListener("input", draw);
    knobs.addEventListener("input", draw);
    at(".pm-menu").addEventListener("change", choose);
    choose();
  };

  window.postx.matrix = { split, compute };
  window.postx.widget("matrix", make);
})();
