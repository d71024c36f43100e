// SSD, the mixer of Mamba-2 (postx/mixers/ssd.py): a short convolution, then one table of K x V numbers a head, which
// fades and is written to at every byte. What a table has forgotten is gone: to go back, one must have kept a copy.
(window.postx.parts ??= {}).ssd = (m) => {
  (m.mixers ??= {}).ssd = ({ H, K, V, taps: W, ssd_eps: eps }, weights, D) => {
    const [inner, mixed] = [H * V, H * V + 2 * K];
    const [inward, out, norm] = ["inward", "out", "norm"].map((name) => weights(`${name}.weight`));
    const [taps, bias] = [weights("taps_DW"), weights("taps_bias_D")];
    const [dtBias, logRate, skip] = ["dt_bias_H", "log_rate_H", "skip_H"].map(weights);
    const rate = Float64Array.from(logRate, Math.exp);
    const S = new Float32Array(H * K * V);
    const past = new Float32Array((W - 1) * mixed); // the last W - 1 inputs of the convolution, oldest first
    const faded = []; // log of what each head kept, at every byte
    let T = 0;

    const convolve = (now) => {
      const u = new Float32Array(mixed);
      for (let d = 0; d < mixed; d++) {
        let sum = bias[d] + taps[d * W + W - 1] * now[d];
        for (let j = 0; j < W - 1; j++) sum += taps[d * W + j] * past[j * mixed + d];
        u[d] = m.silu(sum);
      }
      past.copyWithin(0, mixed);
      past.set(now, (W - 2) * mixed);
      return u;
    };

    return {
      kind: "ssd",
      heads: H,
      size: [K, V],
      step(x) {
        const z = m.times(inward, x, inner + mixed + H);
        const u = convolve(z.subarray(inner, inner + mixed));
        const [k, q] = [u.subarray(inner, inner + K), u.subarray(inner + K)];
        const y = new Float32Array(inner);
        const g = new Float32Array(H);
        for (let h = 0; h < H; h++) {
          const dt = m.softplus(z[inner + mixed + h] + dtBias[h]);
          g[h] = -rate[h] * dt;
          const keep = Math.exp(g[h]);
          for (let i = 0; i < K; i++) {
            const [write, read] = [k[i] * dt, q[i]];
            for (let v = h * V, at = (h * K + i) * V; v < (h + 1) * V; v++, at++) {
              const now = S[at] * keep + write * u[v];
              S[at] = now;
              y[v] += read * now;
            }
          }
          for (let v = h * V; v < (h + 1) * V; v++) y[v] += skip[h] * u[v];
        }
        for (let i = 0; i < inner; i++) y[i] *= m.silu(z[i]);
        faded[T++] = g;
        return m.times(out, m.norm(y, norm, eps), D);
      },
      table: (h) => S.slice(h * K * V, (h + 1) * K * V),
      // Bytes until half of what stands in the table is gone, at the mean rate of the last `over` bytes.
      halfLife(h, over = 64) {
        const some = faded.slice(Math.max(0, T - over), T);
        return (-Math.LN2 * some.length) / some.reduce((sum, g) => sum + g[h], 0);
      },
      save: () => [S.slice(), past.slice()],
      back(n, kept) {
        T = n;
        S.set(kept ? kept[0] : S.map(() => 0));
        past.set(kept ? kept[1] : past.map(() => 0));
      },
      cache: () => 0,
      state: () => 4 * (S.length + past.length),
    };
  };
};
