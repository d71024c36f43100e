// Who remembers? Pairs are told once, other tokens follow, one key is asked for: three small models that learned this
// answer. Their tokens are those of postx.tasks.recall: letters are keys, digits values, and others that mean nothing.
(() => {
  const page = (window.postx.playground ??= {});
  // [[key, value], ...] as a reader writes them, a7 k2; throws where that is no table.
  page.pairs = (text, most) => {
    const words = text.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const odd = words.find((word) => !/^[a-z][0-9]$/.test(word));
    if (odd) throw new Error(`“${odd}” is not a letter and a digit`);
    const twice = words.find((word, i) => words.findIndex((other) => other[0] === word[0]) < i);
    if (twice) throw new Error(`${twice[0]} is told twice`);
    if (!words.length || words.length > most) throw new Error(`it takes 1 to ${most} pairs`);
    return words.map((word) => [word[0], word[1]]);
  };

  // What the models read: the pairs, and `gap` other tokens; the same for the same pairs.
  page.tokens = (pairs, gap, { keys, values, fillers }) => {
    const next = window.postx.numbers(pairs.flat().join(""));
    const others = Array.from({ length: gap }, () => fillers[0] + Math.floor(next() * (fillers[1] - fillers[0])));
    return [...pairs.flatMap(([key, value]) => [page.token(key, keys), values[0] + Number(value)]), ...others];
  };
  page.token = (key, keys) => keys[0] + key.charCodeAt(0) - 97;

  page.remember = ({ remember }) => {
    const { make } = page;
    const { models, tokens, gaps, most, start } = remember;
    const total = models.reduce((sum, { bytes }) => sum + bytes, 0);
    let [draws, asked, readers, round] = [0, null, null, []];
    const draw = (n) => {
      const next = window.postx.numbers(`pairs ${draws++}`);
      const letters = Array.from("abcdefghijklmnopqrstuvwxyz", (letter) => [next(), letter]).sort(([a], [b]) => a - b);
      box.value = letters.slice(0, n).map(([, letter]) => letter + Math.floor(10 * next())).join(" ");
      changed();
    };
    const box = make("input", { type: "text", value: start, maxLength: 80, spellcheck: false, autocapitalize: "off", onchange: () => changed() });
    const others = make("div", { className: "pp-write" }, "Draw ", ...[2, 4, 8, 16].map((n) =>
      make("button", { type: "button", className: "pp-button", onclick: () => draw(n), ariaLabel: `Draw ${n} pairs` }, `${n} pairs`)));
    const gap = page.picker("other tokens between", gaps.map((n) => [n, n.toLocaleString("en-US")]), () => changed());
    const key = page.picker("asked for", [], () => {
      asked = key.select.value;
      ask();
    });
    gap.select.value = gaps[1];
    const said = make("output", { className: "pp-said", ariaLive: "polite" });
    const rows = make("tbody");
    const head = ["Model", "Answer", "Chance of the right one", "Right of all"].map((words) => make("th", { scope: "col" }, words));
    const table = make("table", { className: "pp-remember", ariaLabel: "What three models answer" }, make("thead", {}, make("tr", {}, ...head)), rows);
    const view = make("div", { hidden: true }, make("div", { className: "pp-scroll" }, table), said);

    // The pairs that stand in the box, or null and why not.
    const told = () => {
      try {
        return page.pairs(box.value, most);
      } catch (error) {
        view.hidden = false;
        rows.replaceChildren();
        said.textContent = `These are no pairs: ${error.message}.`;
        return null;
      }
    };
    const offer = (pairs) => {
      if (!pairs.some(([letter]) => letter === asked)) asked = pairs[0][0];
      key.select.replaceChildren(...pairs.map(([letter]) => make("option", { value: letter }, letter)));
      key.select.value = asked;
    };
    const changed = () => {
      const pairs = told();
      if (!pairs) return;
      offer(pairs);
      ask();
    };
    const ask = () => {
      if (!readers) return;
      const pairs = told();
      if (!pairs) return;
      const ids = page.tokens(pairs, Number(gap.select.value), tokens);
      const questions = pairs.map(([letter]) => page.token(letter, tokens.keys));
      round = []; // what an earlier question is answered with comes too late
      const mine = round;
      readers.forEach(([reader, on], i) => {
        on.recall = ({ p }) => {
          if (mine !== round) return;
          mine[i] = p;
          if (mine.filter(Boolean).length === readers.length) show(pairs, mine);
        };
        reader.ask("recall", { ids, asked: questions });
      });
    };
    const show = (pairs, all) => {
      const at = pairs.findIndex(([letter]) => letter === asked);
      const right = (i) => tokens.values[0] + Number(pairs[i][1]);
      const best = (p) => p.indexOf(p.reduce((a, b) => Math.max(a, b)));
      const digit = (id) => (id >= tokens.values[0] && id < tokens.values[1] ? String(id - tokens.values[0]) : "no digit");
      const answers = all.map((each) => digit(best(each[at])));
      rows.replaceChildren(...all.map((each, i) => {
        const known = each.filter((p, k) => best(p) === right(k)).length;
        const yes = answers[i] === pairs[at][1];
        const chance = make("td", {}, page.percent(each[at][right(at)]));
        chance.style.setProperty("--p", `${100 * each[at][right(at)]}%`);
        return make("tr", {}, make("th", { scope: "row" }, models[i].name), make("td", {}, `${answers[i]} ${yes ? "✓" : "✗"}`), chance, make("td", {}, `${known} of ${pairs.length}`));
      }));
      said.textContent = `${pairs[at].join(" was ")}. ${models.map(({ name }, i) => `${name} says ${answers[i]}`).join(", ")}.`;
    };

    const run = async () => {
      view.hidden = false;
      try {
        const failed = (words) => {
          said.textContent = `A model stopped: ${words}`;
          readers = null;
          again();
        };
        const on = models.map(() => ({ failed }));
        readers ??= await Promise.all(models.map(({ id }, i) => page.reader(id, on[i]).then((reader) => [reader, on[i]])));
      } catch (error) {
        said.textContent = `Nothing was loaded: ${error.message}.`;
        return again();
      }
      again("Ask again");
      ask();
    };
    const { go, again } = page.once(`Ask three models (${page.megabytes(total)})`, run);
    offer(page.pairs(start, most));
    return make("section", { className: "pp-piece", ariaLabel: "Who remembers?" },
      make("h2", {}, "Who remembers?"),
      make("p", { className: "pp-note" }, `Three models of ${Math.round(Math.max(...models.map(({ weights }) => weights)) / 1000)},000 weights, trained for nothing but this: to be told pairs of a letter and a digit, and to be asked for one after other tokens.`),
      make("label", { className: "pp-text" }, "Told once", box), others,
      make("div", { className: "pp-write" }, gap.label, key.label), go, view);
  };
})();
