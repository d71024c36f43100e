// What every mixer with a table has: H tables of K x V numbers, H memories of fixed size (postx/scans). What a table has
// forgotten is gone: to go back, one must have kept a copy of it, and of what else the mixer carries from byte to byte.
(window.postx.parts ??= {}).tables = (m) => {
  // carried: arrays that are part of the state beside the tables.
  m.tables = ({ kind, H, K, V }, carried) => {
    const S = m.floats(H * K * V);
    const state = [S, ...carried];
    const faded = []; // log of what was kept at every byte, of each head, or of each of its keys
    let T = 0;
    const one = (h) => S.subarray(h * K * V, (h + 1) * K * V);
    return {
      one,
      // A byte is done: g is the log of what it left.
      done(g) {
        faded[T++] = g;
      },
      shared: {
        kind,
        heads: H,
        size: [K, V],
        table: (h) => one(h).slice(),
        // Bytes until fading alone has taken half, at the mean rate of the last `over` bytes: of each row, or of all alike.
        halfLives(h, over = 64) {
          const some = faded.slice(Math.max(0, T - over), T);
          const each = some[0].length / H;
          return Array.from({ length: each }, (_, i) =>
            (-Math.LN2 * some.length) / some.reduce((sum, g) => sum + g[h * each + i], 0));
        },
        save: () => state.map((part) => part.slice()),
        back(n, kept) {
          T = n;
          state.forEach((part, i) => (kept ? part.set(kept[i]) : part.fill(0)));
        },
        cache: () => 0,
        state: () => 4 * state.reduce((sum, part) => sum + part.length, 0),
      },
    };
  };
};
