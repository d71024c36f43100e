// A language model from its manifest (postx/export.py), a list of blocks, byte by byte:
//     x = embed(byte)    in each block: x = x + mixer(norm(x)), x = x + mlp(norm(x))    logits = head(norm(x))
(window.postx.parts ??= {}).network = (m) => {
  const KEEP = 64; // a copy of every state is kept at each 64th byte, to go back to when the text is edited

  m.network = ({ D, Y, eps, blocks }, all) => {
    const [embed, last] = [all["embed.weight"], all["norm.weight"]];
    const layers = blocks.map((sizes, b) => {
      const own = (name) => all[`blocks.${b}.${name}`];
      return {
        norm: own("norm.weight"),
        mixer: m.mixers[sizes.mixer](sizes, (name) => own(`mix.0.${name}`), D),
        mlpNorm: own("mlp_norm.weight"),
        mlp: sizes.E ? m.experts(sizes, own, D) : m.mlp(sizes, own, D),
      };
    });
    const mixers = layers.map((layer) => layer.mixer);
    const routed = layers.flatMap(({ mlp }, block) => (mlp.chosen ? [{ block, E: mlp.E, chosen: mlp.chosen, back: mlp.back }] : []));
    const copies = [];
    let T = 0;

    return {
      mixers,
      routed,
      get length() {
        return T;
      },
      // Logits of what comes after this byte.
      step(byte) {
        const x = Float32Array.from(embed.subarray(byte * D, (byte + 1) * D));
        for (const { norm, mixer, mlpNorm, mlp } of layers) {
          m.add(x, mixer.step(m.norm(x, norm, eps)));
          m.add(x, mlp.step(m.norm(x, mlpNorm, eps)));
        }
        T++;
        if (T % KEEP === 0) copies[T / KEEP] = mixers.map((mixer) => mixer.save());
        return m.times(embed, m.norm(x, last, eps), Y);
      },
      // Go back to a place at or before byte n, the nearest that there is a way to; returns it.
      back(n) {
        if (n >= T) return T;
        const needed = mixers.some((mixer) => mixer.kind !== "attention");
        T = needed ? n - (n % KEEP) : n;
        routed.forEach(({ back }) => back(T));
        mixers.forEach((mixer, i) => mixer.back(T, needed && T ? copies[T / KEEP][i] : null));
        return T;
      },
      cache: () => mixers.reduce((sum, mixer) => sum + mixer.cache(), 0),
      state: () => mixers.reduce((sum, mixer) => sum + mixer.state(), 0),
    };
  };
};
