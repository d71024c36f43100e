// A mixture of experts (postx/models/nn.py, MoE): a router scores E small MLPs, the k best answer, weighed by their scores.
// Only those k are computed: the others' weights are not read.
(window.postx.parts ??= {}).experts = (m) => {
  m.experts = ({ E, k, F }, weights, D) => {
    const router = weights("mlp.router.weight");
    // The model keeps tables [E, I, O]; a product reads rows.
    const rows = (name, O) => m.turned(weights(`mlp.${name}`), E, O);
    const [gate, up, out] = [rows("gate_EDF", F), rows("up_EDF", F), rows("out_EFD", D)];
    const one = (all, e) => all.subarray(e * D * F, (e + 1) * D * F);
    const mlps = Array.from({ length: E }, (_, e) => m.swiglu(one(gate, e), one(up, e), one(out, e), F, D));
    const chosen = []; // at every byte: [expert, weight], the heaviest first

    return {
      E,
      chosen,
      step(x) {
        const p = m.softmax(m.times(router, x, E));
        const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, k);
        const sum = best.reduce((total, e) => total + p[e], 0);
        const y = new Float32Array(D);
        for (const e of best) {
          const answer = mlps[e](x);
          for (let i = 0; i < D; i++) y[i] += (p[e] / sum) * answer[i];
        }
        chosen.push(best.map((e) => [e, p[e] / sum]));
        return y;
      },
      back(n) {
        chosen.length = n;
      },
    };
  };
};
