// What every block is made of: three sums over a matrix, the RMS norm, and a few functions of a number.
// Where kernel.js has its program the three run there; what stands here is the same in JavaScript, and the definition.
(window.postx.parts ??= {}).sums = (m) => {
  // y_o = W_o . x for the O rows of W: eight rows at a time, so that x is read once for all of them.
  m.times = (W, x, O, y = new Float32Array(O)) => {
    const I = x.length;
    const kernel = m.kernel(W, I, Math.max(I, O));
    if (kernel) {
      const [at, from] = [W.byteOffset, m.place(kernel, 0, x)];
      const [row, to] = [4 * I, m.slot(1)];
      let o = 0;
      for (; o + 8 <= O; o += 8) kernel.times8(at + o * row, from, to + 4 * o, row);
      for (; o < O; o++) kernel.times1(at + o * row, from, to + 4 * o, row);
      m.fetch(kernel, 1, y);
      return y;
    }
    let o = 0;
    for (; o + 8 <= O; o += 8) {
      const r0 = o * I, r1 = r0 + I, r2 = r1 + I, r3 = r2 + I, r4 = r3 + I, r5 = r4 + I, r6 = r5 + I, r7 = r6 + I;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      for (let i = 0; i < I; i++) {
        const v = x[i];
        s0 += W[r0 + i] * v;
        s1 += W[r1 + i] * v;
        s2 += W[r2 + i] * v;
        s3 += W[r3 + i] * v;
        s4 += W[r4 + i] * v;
        s5 += W[r5 + i] * v;
        s6 += W[r6 + i] * v;
        s7 += W[r7 + i] * v;
      }
      y[o] = s0;
      y[o + 1] = s1;
      y[o + 2] = s2;
      y[o + 3] = s3;
      y[o + 4] = s4;
      y[o + 5] = s5;
      y[o + 6] = s6;
      y[o + 7] = s7;
    }
    for (; o < O; o++) {
      let sum = 0;
      for (let i = 0; i < I; i++) sum += W[o * I + i] * x[i];
      y[o] = sum;
    }
    return y;
  };

  // y += p_0 W_0 + p_1 W_1 + ..., rows of y.length numbers
  m.mix = (W, p, y) => {
    const [O, I] = [p.length, y.length];
    const kernel = m.kernel(W, I, Math.max(I, O));
    if (kernel) {
      const [at, from, to] = [W.byteOffset, m.place(kernel, 0, p), m.slot(1)];
      kernel.numbers.set(y, to / 4);
      let i = 0;
      for (; i + 32 <= I; i += 32) kernel.mix8(at + 4 * i, from, to + 4 * i, O, 4 * I);
      for (; i < I; i += 4) kernel.mix1(at + 4 * i, from, to + 4 * i, O, 4 * I);
      m.fetch(kernel, 1, y);
      return y;
    }
    for (let o = 0, at = 0; o < O; o++) for (let i = 0; i < I; i++, at++) y[i] += p[o] * W[at];
    return y;
  };

  // S_o = keep_o S_o + w_o v: each row of a table fades, and is written to
  m.write = (S, keep, w, v) => {
    const [O, I] = [w.length, v.length];
    const kernel = m.kernel(S, I, Math.max(I, O));
    if (kernel) kernel.write(S.byteOffset, m.place(kernel, 0, keep), m.place(kernel, 1, w), O, 4 * I, m.place(kernel, 2, v));
    else for (let o = 0, at = 0; o < O; o++) for (let i = 0; i < I; i++, at++) S[at] = keep[o] * S[at] + w[o] * v[i];
  };

  m.norm = (x, weight, eps) => {
    let squares = 0;
    for (let i = 0; i < x.length; i++) squares += x[i] * x[i];
    const scale = 1 / Math.sqrt(squares / x.length + eps);
    const y = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) y[i] = x[i] * scale * weight[i];
    return y;
  };

  m.add = (x, y) => {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
  };

  // e^x to ten digits, as 2^n e^r with |r| <= ln 2 / 2: a byte takes ten thousand of them, and Math.exp is a call.
  const POWERS = Float64Array.from({ length: 2048 }, (_, i) => 2 ** (i - 1024));
  m.exp = (x) => {
    if (!(Math.abs(x) < 700)) return Math.exp(x);
    const n = Math.round(x * Math.LOG2E);
    const r = x - n * Math.LN2;
    const tail = r * (1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * (1 / 40320 + r / 362880))));
    return (1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + tail))))) * POWERS[n + 1024];
  };
  m.sigmoid = (z) => 1 / (1 + m.exp(-z));
  m.silu = (z) => z / (1 + m.exp(-z));
  m.softplus = (z) => (z > 20 ? z : Math.log1p(Math.exp(z)));

  // softmax(z / temperature), as new numbers; z's largest is taken off first, so nothing overflows.
  m.softmax = (z, temperature = 1) => {
    let [most, sum] = [-Infinity, 0];
    for (let i = 0; i < z.length; i++) if (z[i] > most) most = z[i];
    const p = new Float64Array(z.length);
    for (let i = 0; i < z.length; i++) sum += p[i] = m.exp((z[i] - most) / temperature);
    for (let i = 0; i < z.length; i++) p[i] /= sum;
    return p;
  };

  // SwiGLU: out(silu(gate x) * up x)
  m.swiglu = (gate, up, out, F, D) => (x) => {
    const hidden = m.times(gate, x, F);
    const more = m.times(up, x, F);
    for (let i = 0; i < F; i++) hidden[i] = m.silu(hidden[i]) * more[i];
    return m.times(out, hidden, D);
  };
  m.mlp = ({ F }, weights, D) => ({
    step: m.swiglu(...["gate", "up", "out"].map((name) => weights(`mlp.${name}.weight`)), F, D),
  });
};
