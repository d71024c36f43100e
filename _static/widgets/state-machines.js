// The stream, the four slots and the machines of postx/slots.py, number for number; state.js is the game.
// tests/book/test_state.py holds what is computed here to the package's own mixers.
(() => {
  // xorshift32; below(n) is the next whole number below n.
  const draws = (seed) => {
    let x = Math.imul(seed, 2654435761) || 1;
    const below = (n) => {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      return (x >>> 0) % n;
    };
    for (let i = 0; i < 8; i++) below(1);
    return below;
  };

  // Pairs [who, what, marked].
  const stream = (n, seed, names) => {
    const below = draws(seed);
    const people = [...Array(names).keys()];
    for (let i = 0; i < names; i++) {
      const j = i + below(names - i);
      [people[i], people[j]] = [people[j], people[i]];
    }
    const asked = n / 4 + 2;
    const others = people.slice(asked, asked + (3 * n) / 8);
    const held = {};
    const pairs = [];
    let fresh = asked;
    let marks = (5 * n) / 8;
    for (let t = 0; t < n; t++) {
      if (below(n - t) >= marks) {
        pairs.push([others[below(others.length)], below(8), false]);
        continue;
      }
      let who;
      if (fresh === asked || below(marks) < fresh) {
        who = people[asked - fresh--];
        held[who] = below(8);
      } else {
        who = people[below(asked - fresh)];
        held[who] = (held[who] + 1 + below(7)) % 8;
      }
      marks--;
      pairs.push([who, held[who], true]);
    }
    return pairs;
  };

  // Who is asked about, in the order in which they came, and what they hold at the end.
  const truth = (pairs) => new Map(pairs.filter(([, , marked]) => marked).map(([who, what]) => [who, what]));

  const key = (rows) => [...Array(8)].map((_, i) => (rows.includes(i) ? 3 ** -0.5 : 0));
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const read = (S, q) => S[0].map((_, j) => S.reduce((sum, row, i) => sum + q[i] * row[j], 0));

  // One token: S <- a S + b k (v - c S'k)'
  const write = (S, k, v, [a, b, c]) => {
    const had = read(S, k);
    return S.map((row, i) => row.map((s, j) => a * s + b * k[i] * (v[j] - c * had[j])));
  };
  const rules = {
    linear: () => [1, 1, 0],
    decay: (marked, set) => [set.decay, 1, 0],
    delta: (marked, set) => [1, set.beta, 1],
    gate: (marked, set) => (marked ? [set.gate, 1, 0] : [1, 0, 0]),
  };

  // What each machine reads under each key that is asked for: {machine: [y of eight numbers, ...]}.
  const readings = (pairs, set) => {
    const keys = set.codes.map(key);
    const shape = (what) => [...Array(8)].map((_, j) => +(j === what));
    const asked = [...truth(pairs).keys()].map((who) => keys[who]);
    const found = {
      cache: asked.map((q) => {
        const s = pairs.map(([who], t) => set.scale * dot(q, keys[who]) - set.slope * (pairs.length - 1 - t));
        const most = Math.max(...s);
        const y = Array(8).fill(0);
        pairs.forEach(([, what], t) => (y[what] += Math.exp(s[t] - most)));
        const total = y.reduce((sum, x) => sum + x, 0);
        return y.map((x) => x / total);
      }),
    };
    for (const [machine, rule] of Object.entries(rules)) {
      const one = machine === "linear" ? [1] : []; // its normaliser: a column of ones beside v
      let S = Array(8).fill(Array(8 + one.length).fill(0));
      for (const [who, what, marked] of pairs) S = write(S, keys[who], [...shape(what), ...one], rule(marked, set));
      found[machine] = asked.map((q) => {
        const y = read(S, q);
        const by = machine === "linear" ? y.pop() || 1 : machine === "gate" ? 1 : 8 ** 0.5;
        return y.map((x) => x / by);
      });
    }
    return found;
  };

  // The shape that is ahead of all others, or null where shapes tie.
  const said = (y) => {
    const best = y.indexOf(Math.max(...y));
    return y.every((x, j) => j === best || y[best] - x > 1e-9) ? best : null;
  };
  const answers = (pairs, set) =>
    Object.fromEntries(Object.entries(readings(pairs, set)).map(([machine, all]) => [machine, all.map(said)]));

  // What four slots answer: choices[t] is the slot (0 to 3) that takes pair t, or null.
  const recall = (pairs, choices) => {
    const slots = [];
    choices.forEach((slot, t) => slot !== null && (slots[slot] = { who: pairs[t][0], what: pairs[t][1], t }));
    const newest = new Map(Object.values(slots).sort((a, b) => a.t - b.t).map(({ who, what }) => [who, what]));
    return [...truth(pairs).keys()].map((who) => newest.get(who) ?? null);
  };
  // A careful player: a marked pair goes to its person's slot, or to an empty one, or is let go.
  const byRule = (pairs) => {
    const people = [];
    return pairs.map(([who, , marked]) => {
      if (marked && !people.includes(who) && people.length < 4) people.push(who);
      return marked && people.includes(who) ? people.indexOf(who) : null;
    });
  };
  const score = (pairs, list) => [...truth(pairs).values()].filter((what, i) => what === list[i]).length;

  window.postx.state = { stream, readings, answers, recall, byRule, score, truth };
})();
