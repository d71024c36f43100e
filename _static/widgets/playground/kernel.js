// The sums that take the time, as a program of WebAssembly that is put together here, instruction by instruction: four
// numbers at a time, where the browser can (SIMD). sums.js has the same sums in JavaScript, for where it cannot.
//
//     times   y_o = W_o . x, for R rows of W
//     mix     y += p_0 W_0 + p_1 W_1 + ..., for 4 R columns
//     write   S_o = keep_o S_o + w_o v
//
// All arguments are places in the memory, in bytes; O and I count rows and the bytes of one. What is summed must lie in a
// memory of WebAssembly: m.floats(n) gives n numbers there, which JavaScript reads and writes as any others.
(window.postx.parts ??= {}).kernel = (m) => {
  const [ROOM, SLOT, SLOTS] = [1 << 24, 1 << 14, 4]; // bytes of a memory; at its start slots for what comes from outside

  // ---- an assembler: a function's body is a list of bytes, nested as one likes
  const whole = (n) => (n < 0x80 ? [n] : [(n & 0x7f) | 0x80, ...whole(n >>> 7)]); // LEB128
  const signed = (n) => (n < 0x40 ? [n] : [(n & 0x7f) | 0x80, ...signed(n >> 7)]);
  const list = (parts) => [whole(parts.length), parts];
  const sized = (bytes) => ((bytes = bytes.flat(Infinity)), [whole(bytes.length), bytes]);
  const section = (id, bytes) => [id, sized(bytes)];
  const name = (text) => list([...text].map((letter) => letter.charCodeAt(0)));
  const [I32, VECTOR] = [0x7f, 0x7b];
  const get = (i) => [0x20, i];
  const set = (i, value) => [value, 0x21, i];
  const number = (n) => [0x41, signed(n)];
  const add = (a, b) => [a, b, 0x6a];
  const step = (i, by) => set(i, add(get(i), by));
  // do { ... } while (i < end)
  const until = (i, end, ...body) => [0x03, 0x40, body, get(i), end, 0x49, 0x0d, 0, 0x0b];
  const load = (at, offset = 0) => [at, 0xfd, 0x00, 4, whole(offset)];
  const splat = (at) => [at, 0xfd, 0x09, 2, 0]; // one number, four times
  const store = (at, value, offset = 0) => [at, value, 0xfd, 0x0b, 4, whole(offset)];
  const plus = (a, b) => [a, b, 0xfd, 0xe4, 0x01];
  const product = (a, b) => [a, b, 0xfd, 0xe6, 0x01];
  const lane = (v, i) => [v, 0xfd, 0x1f, i];
  const range = (n, make) => Array.from({ length: n }, (_, i) => make(i));

  // Arguments are locals 0, 1, ...; then those of each function: so many whole numbers, then so many vectors.
  const func = (numbers, vectors, body) => sized([list([[whole(numbers), I32], [whole(vectors), VECTOR]]), body, 0x0b]);
  const times = (R) => { // W, x, y, I
    const [W, x, y, I, i, row, sum] = [0, 1, 2, 3, 4, 5, 5 + R];
    return func(1 + R, R + 1, [
      range(R, (r) => set(row + r, r ? add(get(row + r - 1), get(I)) : get(W))),
      until(i, get(I),
        set(sum + R, load(add(get(x), get(i)))),
        range(R, (r) => set(sum + r, plus(get(sum + r), product(load(add(get(row + r), get(i))), get(sum + R))))),
        step(i, number(16))),
      range(R, (r) => [get(y), range(4, (l) => [lane(get(sum + r), l), l ? 0x92 : []]), 0x38, 2, whole(4 * r)]),
    ]);
  };
  const mix = (R) => { // W, p, y, O, I
    const [W, p, y, O, I, o, sum] = [0, 1, 2, 3, 4, 5, 6];
    return func(1, R + 1, [
      range(R, (r) => set(sum + r, load(get(y), 16 * r))),
      until(o, get(O),
        set(sum + R, splat(get(p))),
        range(R, (r) => set(sum + r, plus(get(sum + r), product(load(get(W), 16 * r), get(sum + R))))),
        step(W, get(I)), step(p, number(4)), step(o, number(1))),
      range(R, (r) => store(get(y), get(sum + r), 16 * r)),
    ]);
  };
  const write = () => { // S, keep, w, O, I, v
    const [S, keep, w, O, I, v, o, i, k, x] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    return func(2, 2, [
      until(o, get(O),
        set(k, splat(get(keep))), set(x, splat(get(w))), set(i, number(0)),
        until(i, get(I),
          store(get(S), plus(product(load(get(S)), get(k)), product(get(x), load(add(get(v), get(i)))))),
          step(S, number(16)), step(i, number(16))),
        step(keep, number(4)), step(w, number(4)), step(o, number(1))),
    ]);
  };

  const FUNCTIONS = [["times8", 4, times(8)], ["times1", 4, times(1)], ["mix8", 5, mix(8)], ["mix1", 5, mix(1)], ["write", 6, write()]];
  const program = () => Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    section(1, list([4, 5, 6].map((n) => [0x60, list(Array(n).fill(I32)), 0]))),
    section(2, list([[name("page"), name("memory"), 2, 0, 1]])),
    section(3, list(FUNCTIONS.map(([, takes]) => takes - 4))),
    section(7, list(FUNCTIONS.map(([called], i) => [name(called), 0, i]))),
    section(10, list(FUNCTIONS.map(([, , body]) => body))),
  ].flat(Infinity));

  // ---- memories, each with the program on it; `used` bytes of the last are given away
  const rooms = new WeakMap();
  let [compiled, last, used] = [undefined, null, 0];
  const room = (bytes) => {
    if (compiled === undefined) {
      const code = typeof WebAssembly === "object" ? program() : null;
      compiled = code && WebAssembly.validate(code) ? new WebAssembly.Module(code) : null;
    }
    if (!compiled) return null;
    const memory = new WebAssembly.Memory({ initial: Math.max(ROOM, bytes + SLOT * SLOTS) / 65536 + 1 });
    const { exports } = new WebAssembly.Instance(compiled, { page: { memory } });
    last = memory.buffer;
    used = SLOT * SLOTS;
    rooms.set(last, { ...exports, numbers: new Float32Array(last) });
    return last;
  };

  // n numbers, all 0, where the program can reach them.
  m.floats = (n) => {
    const bytes = 16 * Math.ceil(n / 4);
    if ((!last || used + bytes > last.byteLength) && !room(bytes)) return new Float32Array(n);
    used += bytes;
    return new Float32Array(last, used - bytes, n);
  };

  // The program for rows of I numbers in W and vectors of at most `most`, or null: then JavaScript does the sum.
  m.kernel = (W, I, most) => (I % 4 || W.byteOffset % 16 || most > SLOT / 4 ? null : rooms.get(W.buffer) ?? null);
  // The place of x for the program: where it is, or a copy in one of the slots.
  m.place = (kernel, slot, x) => {
    if (x.buffer === kernel.numbers.buffer && x.byteOffset % 16 === 0) return x.byteOffset;
    kernel.numbers.set(x, m.slot(slot) / 4);
    return m.slot(slot);
  };
  m.slot = (slot) => slot * SLOT;
  m.fetch = (kernel, slot, y) => y.set(kernel.numbers.subarray(m.slot(slot) / 4, m.slot(slot) / 4 + y.length));
};
