// What every block is made of: a matrix times a vector, the RMS norm, and three functions of a number.
(window.postx.parts ??= {}).sums = (m) => {
  // W x for W of O rows: eight rows at a time, so that x is read once for all of them.
  m.times = (W, x, O, y = new Float32Array(O)) => {
    const I = x.length;
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
