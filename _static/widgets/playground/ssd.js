// SSD, the mixer of Mamba-2 (postx/mixers/ssd.py): a short convolution, then one table a head, which fades as a whole and
// is written to at every byte.
(window.postx.parts ??= {}).ssd = (m) => {
  (m.mixers ??= {}).ssd = ({ H, K, V, mixer_eps: eps }, weights, D) => {
    const [inner, mixed] = [H * V, H * V + 2 * K];
    const [inward, out, norm] = ["inward", "out", "norm"].map((name) => weights(`${name}.weight`));
    const [dtBias, logRate, skip] = ["dt_bias_H", "log_rate_H", "skip_H"].map(weights);
    const rate = Float64Array.from(logRate, Math.exp);
    const mixing = m.convolution(weights("taps_DW"), weights("taps_bias_D"), mixed);
    const tables = m.tables({ kind: "ssd", H, K, V }, [mixing.past]);
    const [keep, write] = [new Float32Array(K), new Float32Array(K)];

    return {
      ...tables.shared,
      step(x) {
        const z = m.times(inward, x, inner + mixed + H);
        const u = mixing.step(z.subarray(inner, inner + mixed));
        const [k, q] = [u.subarray(inner, inner + K), u.subarray(inner + K)];
        const y = new Float32Array(inner);
        const g = new Float32Array(H);
        for (let h = 0; h < H; h++) {
          const [S, own, v] = [tables.one(h), y.subarray(h * V, (h + 1) * V), u.subarray(h * V, (h + 1) * V)];
          const dt = m.softplus(z[inner + mixed + h] + dtBias[h]);
          g[h] = -rate[h] * dt;
          keep.fill(Math.exp(g[h]));
          for (let i = 0; i < K; i++) write[i] = k[i] * dt;
          m.write(S, keep, write, v);
          m.mix(S, q, own);
          for (let i = 0; i < V; i++) own[i] += skip[h] * v[i];
        }
        for (let i = 0; i < inner; i++) y[i] *= m.silu(z[i]);
        tables.done(g);
        return m.times(out, m.norm(y, norm, eps), D);
      },
    };
  };
};
