// The network that reads a text with holes at once, both ways (postx/models/denoiser.py), and fills them step by step.
(window.postx.parts ??= {}).denoiser = (m) => {
  // logits(ids): for each place, Y - 1 numbers; the last row of the embedding is the mask's.
  m.denoiser = ({ D, Y, eps, blocks }, all) => {
    const embed = all["embed.weight"];
    const layers = blocks.map((sizes, b) => {
      const own = (name) => all[`blocks.${b}.${name}`];
      return { ...sizes, own, mlp: m.mlp(sizes, own, D) };
    });

    const attend = ({ own, H, G, K, V, base }, xs) => {
      const [q, k, v] = ["q", "k", "v"].map((name, i) => xs.map((x, t) => {
        const z = m.times(own(`mix.0.${name}.weight`), x, [H * K, G * K, G * V][i]);
        return name === "v" ? z : m.turn(z, i ? G : H, K, t, base);
      }));
      return xs.map((_, t) => {
        const y = new Float32Array(H * V);
        for (let h = 0; h < H; h++) {
          const g = Math.floor(h / (H / G));
          const p = m.softmax(k.map((key) => {
            let sum = 0;
            for (let i = 0; i < K; i++) sum += q[t][h * K + i] * key[g * K + i];
            return sum / Math.sqrt(K);
          }));
          v.forEach((value, at) => {
            for (let i = 0; i < V; i++) y[h * V + i] += p[at] * value[g * V + i];
          });
        }
        return m.times(own("mix.0.out.weight"), y, D);
      });
    };

    return (ids) => {
      const xs = Array.from(ids, (id) => Float32Array.from(embed.subarray(id * D, (id + 1) * D)));
      for (const layer of layers) {
        attend(layer, xs.map((x) => m.norm(x, layer.own("norm.weight"), eps))).forEach((y, t) => m.add(xs[t], y));
        xs.forEach((x) => m.add(x, layer.mlp.step(m.norm(x, layer.own("mlp_norm.weight"), eps))));
      }
      return xs.map((x) => m.times(embed, m.norm(x, all["norm.weight"], eps), Y - 1));
    };
  };

  // `steps` times: guess every hole, and keep the guesses that the network is surest of, a fair share each time
  // (postx.diffusion.masked.remask, "low_confidence" at temperature 0). `tell` hears the text after each step.
  m.filler = (told, weights, say) => {
    const [logits, mask] = [m.denoiser(told, weights), told.Y - 1];
    return {
      fill({ ids, steps }) {
        ids = Array.from(ids);
        for (let step = 0; step < steps; step++) {
          const open = ids.flatMap((id, t) => (id === mask ? [t] : []));
          const share = Math.ceil(open.length / (steps - step));
          if (share) {
            const answers = logits(ids);
            const guesses = open.map((t) => {
              const p = m.softmax(answers[t]);
              const best = p.indexOf(p.reduce((a, b) => Math.max(a, b)));
              return [p[best], t, best];
            });
            guesses.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
            guesses.slice(0, share).forEach(([, t, byte]) => (ids[t] = byte));
          }
          say("step", { ids, step: step + 1, steps });
        }
        return ids;
      },
    };
  };
};
