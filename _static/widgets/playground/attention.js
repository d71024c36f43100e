// Softmax attention with its cache (postx/mixers/attention.py): rotary positions, heads that share keys and values.
// A cache can be cut at any byte: what came before a place is still all there.
(window.postx.parts ??= {}).attention = (m) => {
  m.turn = (x, heads, K, position, base) => {
    for (let i = 0; i < K / 2; i++) {
      const angle = position * base ** ((-2 * i) / K);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let at = i; at < heads * K; at += K) {
        const [a, b] = [x[at], x[at + K / 2]];
        x[at] = a * cos - b * sin;
        x[at + K / 2] = a * sin + b * cos;
      }
    }
    return x;
  };

  const PAGE = 128; // places whose keys, and values, lie together, head by head

  (m.mixers ??= {}).attention = ({ H, G, K, V, base, taps }, weights, D) => {
    const [Wq, Wk, Wv, Wo] = ["q", "k", "v", "out"].map((name) => weights(`${name}.weight`));
    const [mixed, filter] = [H * K + G * (K + V), taps && weights("conv.taps_DW")];
    const inputs = []; // of the short convolution, if there is one: each channel becomes a sum of its own last ones
    const [asked, keys, values] = [[], [], []]; // queries place by place, for the pictures; the others page by page
    let T = 0;

    const keep = (pages, x, width) => {
      const page = (pages[Math.floor(T / PAGE)] ??= m.floats(PAGE * G * width));
      for (let g = 0; g < G; g++) page.set(x.subarray(g * width, (g + 1) * width), (g * PAGE + (T % PAGE)) * width);
    };
    const mixing = (z) => {
      inputs[T] = z;
      const sum = (_, d) => {
        let y = 0;
        for (let j = 0; j < taps && j <= T; j++) y += filter[d * taps + taps - 1 - j] * inputs[T - j][d];
        return y;
      };
      return z.map(sum);
    };
    // Rows of head h in each page, for the first n places: [first place, their number, the rows].
    const rows = (pages, width, h, n) => {
      const g = Math.floor(h / (H / G));
      const all = [];
      for (let at = 0; at < n; at += PAGE)
        all.push([at, Math.min(PAGE, n - at), pages[at / PAGE].subarray(g * PAGE * width, (g + 1) * PAGE * width)]);
      return all;
    };

    // How head h of place t looks at the places 0..t: probabilities.
    const look = (h, t) => {
      const q = asked[t].subarray(h * K, (h + 1) * K);
      const score = new Float32Array(t + 1);
      for (const [at, n, page] of rows(keys, K, h, t + 1)) m.times(page, q, n, score.subarray(at, at + n));
      for (let at = 0; at <= t; at++) score[at] /= Math.sqrt(K);
      return m.softmax(score);
    };

    return {
      kind: "attention",
      heads: H,
      step(x) {
        const z = new Float32Array(mixed);
        m.times(Wq, x, H * K, z.subarray(0, H * K));
        m.times(Wk, x, G * K, z.subarray(H * K, H * K + G * K));
        m.times(Wv, x, G * V, z.subarray(H * K + G * K));
        const u = taps ? mixing(z) : z;
        asked[T] = m.turn(u.subarray(0, H * K), H, K, T, base);
        keep(keys, m.turn(u.subarray(H * K, H * K + G * K), G, K, T, base), K);
        keep(values, u.subarray(H * K + G * K), V);
        T++;
        const y = new Float32Array(H * V);
        for (let h = 0; h < H; h++) {
          const p = look(h, T - 1);
          for (const [at, n, page] of rows(values, V, h, T)) m.mix(page, p.subarray(at, at + n), y.subarray(h * V, (h + 1) * V));
        }
        return m.times(Wo, y, D);
      },
      look,
      save: () => null,
      back(n) {
        T = n;
      },
      // Bytes that grow with the text, and those that do not; queries are kept for the pictures only.
      cache: () => 4 * T * G * (K + V),
      state: () => (taps ? 4 * (taps - 1) * mixed : 0),
    };
  };
};
