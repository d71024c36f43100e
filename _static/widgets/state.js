// You are the state: the game on the stream, slots and machines of state-machines.js.
(() => {
  const { stream, answers, recall, byRule, score, truth } = window.postx.state;
  const LENGTHS = [8, 16, 32, 64]; // to play; the chart goes one further
  const STREAMS = 60; // of the chart
  const DRAWN = [
    ["circle", "teal", "M12 2a10 10 0 1 0 .01 0z"],
    ["square", "ssm", "M3 3h18v18H3z"],
    ["triangle", "linear", "M12 2 23 21H1z"],
    ["star", "gold", "M12 1l3.1 7.3 7.9.6-6 5.2 1.9 7.7L12 17.6 5.1 21.8 7 14.1 1 8.9l7.9-.6z"],
    ["diamond", "hybrid", "M12 1 21 12 12 23 3 12z"],
    ["cross", "brick", "M8.5 2h7v6.5H22v7h-6.5V22h-7v-6.5H2v-7h6.5z"],
    ["heart", "attention", "M12 21.5C5 15.5 1 12 1 7.5a5.5 5.5 0 0 1 11-1.5 5.5 5.5 0 0 1 11 1.5c0 4.5-4 8-11 14z"],
    ["hexagon", "liquid", "M7 3h10l6 9-6 9H7L1 12z"],
  ];
  const icon = (what) =>
    `<svg viewBox="0 0 24 24" aria-hidden="true" style="color:var(--px-${DRAWN[what][1]})"><path d="${DRAWN[what][2]}"/></svg>`;
  const put = (parent, tag, attributes = {}, html = "") => {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.innerHTML = html;
    parent.append(made);
    return made;
  };

  const chart = (lines, dots) => {
    const x = (n) => 38 + 38 * Math.log2(n / 8);
    const y = (share) => 150 - 130 * share;
    let out = "";
    for (const share of [0, 0.5, 1])
      out += `<path class="grid" d="M38 ${y(share)}H190"/><text x="32" y="${y(share) + 4}" class="end">${100 * share}%</text>`;
    for (const n of [8, 16, 32, 64, 128]) out += `<text x="${x(n)}" y="166" class="mid">${n}</text>`;
    let free = 168; // names stand above each other, from the lowest line up
    for (const { name, color, means } of [...lines].sort((a, b) => a.means[4] - b.means[4])) {
      const points = means.map((share, i) => `${x(8 << i)},${y(share)}`).join(" ");
      free = Math.min(free - 13, y(means[4]) + 4);
      out += `<g style="color:${color}"><polyline points="${points}"/><text x="200" y="${free}">${name}</text></g>`;
    }
    for (const [n, share] of dots) out += `<circle cx="${x(n)}" cy="${y(share)}" r="4.5"/>`;
    const words = lines.map(({ name, means }) => `${name} ${means.map((m) => Math.round(100 * m)).join(", ")}`).join("; ");
    return `<svg viewBox="0 0 300 172" role="img" aria-label="Percent of right answers at 8, 16, 32, 64 and 128 pairs: ${words}">${out}</svg>`;
  };

  window.postx.widget("state", (figure, set) => {
    const root = put(figure, "div", { class: "px-state", tabindex: -1, role: "group", "aria-label": "The game" });
    figure.prepend(root);
    figure.classList.add("px-alive"); // the still picture goes
    const card = put(root, "output", { "aria-live": "polite" });
    const board = put(root, "div", { class: "px-slots" });
    const result = put(root, "div", { class: "px-result" });
    const bar = put(root, "div", { class: "px-bar" });
    const note = put(root, "p", { role: "status" });
    const played = []; // [pairs, share right] of every game
    let seed, n, pairs, choices, slots, means;

    const pair = ([who, what]) => `${set.names[who]}, ${DRAWN[what][0]}`;
    const buttons = [0, 1, 2, 3, null].map((slot) => {
      const button = put(board, "button", { type: "button" });
      button.addEventListener("click", () => take(slot));
      return button;
    });

    const show = () => {
      const t = choices.length;
      const [who, what, marked] = pairs[t];
      card.innerHTML =
        `<small>Pair ${t + 1} of ${n}</small> <span><b>${set.names[who]}</b> now has the ${icon(what)} <b>${DRAWN[what][0]}</b></span> ` +
        `<small class="${marked ? "px-marked" : ""}">${marked ? "will be asked" : "will not be asked"}</small>`;
      buttons.slice(0, 4).forEach((button, i) => {
        const held = slots[i];
        button.innerHTML = `<kbd>${i + 1}</kbd>${held ? `${icon(held[1])}<span>${set.names[held[0]]}</span>` : "<span>empty</span>"}`;
        button.setAttribute("aria-label", `Slot ${i + 1}: ${held ? pair(held) : "empty"}. Put ${pair(pairs[t])} here`);
      });
      buttons[4].innerHTML = "<kbd>0</kbd>Let it go";
    };

    const take = (slot) => {
      if (choices.length === n) return;
      if (!choices.length) address();
      choices.push(slot);
      if (slot !== null) slots[slot] = pairs[choices.length - 1];
      if (choices.length < n) show();
      else finish();
    };

    const finish = () => {
      const asked = [...truth(pairs)];
      const mine = recall(pairs, choices);
      const found = answers(pairs, set);
      const right = score(pairs, mine);
      played.push([n, right / asked.length]);
      card.innerHTML =
        `<small>Who has what? ${asked.length} were asked about.</small> <span>You: <b>${right} of ${asked.length}</b></span> ` +
        `<small>in four slots, 64 numbers. The cache kept ${n} pairs, ${16 * n} numbers: ${score(pairs, found.cache)} of ${asked.length}</small>`;
      board.hidden = true;
      result.hidden = false;
      const columns = asked.length > 10 ? 9 : asked.length;
      const strip = (cells, label) =>
        `<td><span class="px-strip" style="--columns:${columns}"${label ? ` role="img" aria-label="${label}"` : ""}>${cells.join("")}</span></td>`;
      const row = (name, why, list) => {
        const cells = list.map((what, i) =>
          what === null ? "<i>?</i>" : `<i class="${what === asked[i][1] ? "" : "px-wrong"}">${icon(what)}</i>`);
        const words = list.map((what, i) =>
          `${set.names[asked[i][0]]} ${what === null ? "no answer" : DRAWN[what][0] + (what === asked[i][1] ? "" : ", wrong")}`);
        return `<tr><th scope="row">${name}<small>${why}</small></th>${strip(cells, words.join("; "))}<td>${score(pairs, list)}</td></tr>`;
      };
      const names = asked.map(([who]) => `<i>${asked.length > 6 ? "" : set.names[who]}</i>`);
      result.innerHTML =
        `<table><thead><tr><th>who said</th>${strip(names)}<th>right</th></tr></thead><tbody>` +
        row("You", "four slots", mine) +
        set.machines.map(({ id, name, page, color, why }) =>
          row(`<a href="${page}" style="border-color:var(--px-${color})">${name}</a>`, why, found[id])).join("") +
        `</tbody></table><p>Dashed: wrong. ?: a tie, or not in your slots. ${kept(asked, found.linear)}</p>`;
      const longer = LENGTHS[LENGTHS.indexOf(n) + 1];
      if (longer) put(result, "button", { type: "button", class: "px-go" }, `Now ${longer} pairs`).addEventListener("click", () => start(seed, longer));
      const plot = put(result, "div", { class: "px-plot" });
      average((lines) => (plot.innerHTML = `<p>Right answers at 8 to 128 pairs, mean of ${STREAMS} streams; dots: your games. “Four slots” keeps the first four people that will be asked.</p>${chart(lines, played)}`));
      root.focus({ preventScroll: true });
      if (root.getBoundingClientRect().bottom > innerHeight) root.scrollIntoView();
    };

    // Why a sum is wrong: somebody who had something else before.
    const kept = (asked, found) => {
      const before = ([person, last]) => pairs.find(([who, what, marked]) => marked && who === person && what !== last);
      const who = asked.find((one, i) => found[i] !== one[1] && before(one));
      return who ? `${set.names[who[0]]} had the ${DRAWN[before(who)[1]][0]} before: a sum keeps both.` : "";
    };

    // The lines of the chart, once, a stream at a time so that the page goes on answering.
    const average = (done) => {
      if (means) return done(means);
      const lines = [...set.machines, { id: "rule", name: "Four slots", color: "neutral" }];
      const rates = lines.map(() => [0, 0, 0, 0, 0]);
      const next = (at) => {
        if (at > STREAMS) {
          means = lines.map(({ short, name, color }, i) => ({ name: short ?? name, color: `var(--px-${color})`, means: rates[i] }));
          return done(means);
        }
        [8, 16, 32, 64, 128].forEach((length, i) => {
          const other = stream(length, at, set.names.length);
          const found = { ...answers(other, set), rule: recall(other, byRule(other)) };
          lines.forEach(({ id }, j) => (rates[j][i] += score(other, found[id]) / truth(other).size / STREAMS));
        });
        setTimeout(next, 0, at + 1);
      };
      next(1);
    };

    const address = () => history.replaceState(null, "", `#seed=${seed}&n=${n}`);
    const start = (newSeed, length, quiet) => {
      [seed, n, choices, slots] = [newSeed, length, [], []];
      pairs = stream(n, seed, set.names.length);
      board.hidden = false;
      result.hidden = true;
      result.innerHTML = note.textContent = "";
      bar.querySelectorAll("input").forEach((input) => (input.checked = +input.value === n));
      bar.querySelector("b").textContent = seed;
      show();
      if (quiet) return;
      address();
      root.focus({ preventScroll: true });
      root.scrollIntoView({ block: "nearest" });
    };
    const fromAddress = (quiet) => {
      const asked = new URLSearchParams(location.hash.slice(1));
      if (!asked.has("seed")) return quiet && start(set.seed, LENGTHS[0], true);
      const [number, length] = [+asked.get("seed"), +asked.get("n")];
      const known = Number.isInteger(number) && number >= 1 && number <= 9999 && LENGTHS.includes(length);
      start(known ? number : set.seed, known ? length : LENGTHS[0], true);
      if (!known) note.textContent = `The address names no stream: seed is 1 to 9999, n is ${LENGTHS.join(", ")}. This is stream ${seed}.`;
    };

    const lengths = put(bar, "fieldset", {}, "<legend>Pairs</legend>");
    for (const length of LENGTHS) {
      const label = put(lengths, "label", {}, `<input type="radio" name="px-pairs" value="${length}">${length}`);
      label.firstChild.addEventListener("change", () => start(seed, length));
    }
    put(bar, "span", {}, "Stream <b></b>");
    put(bar, "button", { type: "button" }, "Another").addEventListener("click", () => start(1 + Math.floor(9999 * Math.random()), n));
    put(bar, "button", { type: "button" }, "Copy link").addEventListener("click", async () => {
      address();
      try {
        await navigator.clipboard.writeText(location.href);
        note.textContent = "Copied. Whoever opens the link plays this stream.";
      } catch {
        note.innerHTML = '<label>Copy this: <input readonly></label>'; // no clipboard here, or none allowed
        note.querySelector("input").value = location.href;
        note.querySelector("input").select();
      }
    });
    root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.readOnly) return;
      const space = event.key === " " && event.target === root;
      if (!space && !/^[0-4]$/.test(event.key)) return;
      event.preventDefault();
      take(space || event.key === "0" ? null : event.key - 1);
    });
    addEventListener("hashchange", () => fromAddress(false));
    fromAddress(true);
  });
})();
