// Gated DeltaNet (postx/mixers/gated_deltanet.py): the table fades as a whole; then the byte takes out what stands under
// its key and puts its own value there, for as much of both as beta says.
(window.postx.parts ??= {}).gated_deltanet = (m) => {
  (m.mixers ??= {}).gated_deltanet = ({ H, G, K, V, taps, top, mixer_eps: eps }, weights, D) => {
    const [Wq, Wk, Wv, Wgate, Wbeta, Wrate, norm, out] =
      ["q", "k", "v", "gate", "beta", "rate", "norm", "out"].map((name) => weights(`${name}.weight`));
    const [bias, logA] = [weights("bias_H"), weights("log_A_H")];
    const rate = Float64Array.from(logA, Math.exp);
    const mixed = 2 * G * K + H * V;
    const mixing = taps ? m.convolution(weights("conv.taps_DW"), null, mixed) : { past: [], step: (z) => z.map(m.silu) };
    const tables = m.tables({ kind: "gated_deltanet", H, K, V }, taps ? [mixing.past] : []);
    const keep = new Float32Array(K);

    // Keys and queries of length 1, by `scale`.
    const unit = (x, scale = 1) => {
      let squares = 1e-6;
      for (let i = 0; i < K; i++) squares += x[i] * x[i];
      return x.map((value) => (value * scale) / Math.sqrt(squares));
    };

    return {
      ...tables.shared,
      step(x) {
        const z = new Float32Array(mixed);
        m.times(Wq, x, G * K, z.subarray(0, G * K));
        m.times(Wk, x, G * K, z.subarray(G * K, 2 * G * K));
        m.times(Wv, x, H * V, z.subarray(2 * G * K));
        const u = mixing.step(z);
        const [gate, beta, fade] = [m.times(Wgate, x, H * V), m.times(Wbeta, x, H), m.times(Wrate, x, H)];
        const y = new Float32Array(H * V);
        const g = new Float32Array(H);
        for (let h = 0; h < H; h++) {
          const at = Math.floor(h / (H / G)) * K;
          const [q, k] = [unit(u.subarray(at, at + K), K ** -0.5), unit(u.subarray(G * K + at, G * K + at + K))];
          const v = u.subarray(2 * G * K + h * V, 2 * G * K + (h + 1) * V);
          const S = tables.one(h);
          g[h] = -rate[h] * m.softplus(fade[h] + bias[h]);
          const kept = Math.exp(g[h]);
          const missing = m.mix(S, k, new Float32Array(V)); // what stands under k, before it fades
          for (let i = 0; i < V; i++) missing[i] = top * m.sigmoid(beta[h]) * (v[i] - kept * missing[i]);
          m.write(S, keep.fill(kept), k, missing);
          const own = m.norm(m.mix(S, q, new Float32Array(V)), norm, eps);
          for (let i = 0; i < V; i++) y[h * V + i] = own[i] * m.silu(gate[h * V + i]);
        }
        tables.done(g);
        return m.times(out, y, D);
      },
    };
  };
};
