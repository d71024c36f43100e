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

  const grown = (old, size) => {
    if (size <= old.length) return old;
    const more = new Float32Array(Math.max(size, 2 * old.length));
    more.set(old);
    return more;
  };

  (m.mixers ??= {}).attention = ({ H, G, K, V, base }, weights, D) => {
    const [Wq, Wk, Wv, Wo] = ["q", "k", "v", "out"].map((name) => weights(`${name}.weight`));
    let [asked, keys, values, T] = [new Float32Array(0), new Float32Array(0), new Float32Array(0), 0];

    // How head h of place t looks at the places 0..t: probabilities.
    const look = (h, t) => {
      const [q, score] = [(t * H + h) * K, new Float64Array(t + 1)];
      for (let at = 0, k = Math.floor(h / (H / G)) * K; at <= t; at++, k += G * K) {
        let sum = 0;
        for (let i = 0; i < K; i++) sum += asked[q + i] * keys[k + i];
        score[at] = sum / Math.sqrt(K);
      }
      return m.softmax(score);
    };

    return {
      kind: "attention",
      heads: H,
      step(x) {
        asked = grown(asked, (T + 1) * H * K);
        keys = grown(keys, (T + 1) * G * K);
        values = grown(values, (T + 1) * G * V);
        asked.set(m.turn(m.times(Wq, x, H * K), H, K, T, base), T * H * K);
        keys.set(m.turn(m.times(Wk, x, G * K), G, K, T, base), T * G * K);
        values.set(m.times(Wv, x, G * V), T * G * V);
        T++;
        const y = new Float32Array(H * V);
        for (let h = 0; h < H; h++) {
          const p = look(h, T - 1);
          for (let at = 0, v = Math.floor(h / (H / G)) * V; at < T; at++, v += G * V)
            for (let i = 0; i < V; i++) y[h * V + i] += p[at] * values[v + i];
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
      state: () => 0,
    };
  };
};
