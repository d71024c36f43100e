// The short convolution in front of a table (postx/parts/conv.py): each channel is a sum of its own last W inputs, each
// times a number of its own, and goes through the SiLU.
(window.postx.parts ??= {}).convolution = (m) => {
  m.convolution = (taps, bias, channels) => {
    const W = taps.length / channels;
    const past = new Float32Array((W - 1) * channels); // the last W - 1 inputs, oldest first
    return {
      past,
      step(now) {
        const u = new Float32Array(channels);
        for (let d = 0; d < channels; d++) {
          let sum = (bias ? bias[d] : 0) + taps[d * W + W - 1] * now[d];
          for (let j = 0; j < W - 1; j++) sum += taps[d * W + j] * past[j * channels + d];
          u[d] = m.silu(sum);
        }
        past.copyWithin(0, channels);
        past.set(now, (W - 2) * channels);
        return u;
      },
    };
  };
};
