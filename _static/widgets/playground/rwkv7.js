// RWKV-7 (postx/mixers/rwkv7.py): each row of the table, one a key, fades at a rate of its own; the byte takes out one
// direction and writes another. What it reads of the byte before it is all that it has in place of a convolution.
(window.postx.parts ??= {}).rwkv7 = (m) => {
  const FASTEST = -Math.exp(-0.5); // no key keeps less than 0.545 of itself at a byte

  (m.mixers ??= {}).rwkv7 = ({ H, K, mixer_eps: eps }, weights, D) => {
    const [Wr, Wk, Wv, Wout] = ["r", "k", "v", "out"].map((name) => weights(`${name}.weight`));
    const [mix, removalBy, scaleBy, u] = ["mix_6D", "removal_D", "scale_D", "u_HK"].map(weights);
    const [norm, normBias] = [weights("norm.weight"), weights("norm.bias")];
    const last = new Float32Array(D); // the byte before, as this layer saw it
    const tables = m.tables({ kind: "rwkv7", H, K, V: K }, [last]);
    const ones = new Float32Array(K).fill(1);

    // Two products with a function between them, through a narrow place; a bias where there is one.
    const narrow = (down, up, between = (z) => z) => {
      const [Wdown, Wup] = [weights(`${down}.weight`), weights(`${up}.weight`)];
      const bias = weights(`${up}.bias`);
      return (x) => {
        const y = m.times(Wup, m.times(Wdown, x, Wdown.length / D).map(between), D);
        if (bias) m.add(y, bias);
        return y;
      };
    };
    const decay = narrow("decay.0", "decay.2", Math.tanh);
    const rate = narrow("a.0", "a.1");
    const gate = narrow("gate.0", "gate.2", m.sigmoid);

    // Over a head: mean 0, variance 1.
    const groupNorm = (y, h) => {
      let [sum, squares] = [0, 0];
      for (let i = 0; i < K; i++) sum += y[i];
      for (let i = 0; i < K; i++) squares += (y[i] - sum / K) ** 2;
      const scale = 1 / Math.sqrt(squares / K + eps);
      return y.map((value, i) => (value - sum / K) * scale * norm[h * K + i] + normBias[h * K + i]);
    };

    return {
      ...tables.shared,
      step(x) {
        const seen = (j) => x.map((value, d) => value + (last[d] - value) * mix[j * D + d]);
        const [r, k, v] = [m.times(Wr, seen(0), D), m.times(Wk, seen(2), D), m.times(Wv, seen(3), D)];
        const [g, a, open] = [decay(seen(1)), rate(seen(4)).map(m.sigmoid), gate(seen(5))];
        last.set(x);
        const removal = k.map((value, d) => value * removalBy[d]);
        for (let d = 0; d < D; d++) {
          k[d] *= 1 + (a[d] - 1) * scaleBy[d];
          g[d] = FASTEST * m.sigmoid(g[d]);
        }
        const y = new Float32Array(D);
        for (let h = 0; h < H; h++) {
          const [S, head] = [tables.one(h), (z) => z.subarray(h * K, (h + 1) * K)];
          const [out, own] = [head(removal), head(v)];
          const long = Math.max(1e-12, Math.hypot(...out));
          for (let i = 0; i < K; i++) out[i] /= long;
          const held = m.mix(S, out, new Float32Array(K));
          m.write(S, head(g).map(m.exp), head(k), own);
          m.write(S, ones, out.map((value, i) => -value * head(a)[i]), held);
          const read = groupNorm(m.mix(S, head(r), new Float32Array(K)), h);
          let bonus = 0; // the byte's own value, past the table
          for (let i = 0; i < K; i++) bonus += head(r)[i] * head(k)[i] * u[h * K + i];
          for (let i = 0; i < K; i++) y[h * K + i] = (read[i] + bonus * own[i]) * open[h * K + i];
        }
        tables.done(g);
        return m.times(Wout, y, D);
      },
    };
  };
};
