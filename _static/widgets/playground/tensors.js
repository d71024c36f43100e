// The packed format, version 1 (postx/models/packed.py), as numbers: what a quantizer stored becomes Float32Array again, once,
// where the program of kernel.js can reach it.
// Each file of this folder is a part: a function that adds to m. The page and its worker put the same parts together.
(window.postx.parts ??= {}).tensors = (m) => {
  m.fromBase64 = (text) => {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    return bytes;
  };

  const half = (bits) => {
    const sign = bits >> 15 ? -1 : 1;
    const [power, rest] = [(bits >> 10) & 31, bits & 1023];
    return power ? sign * 2 ** (power - 15) * (1 + rest / 1024) : (sign * 2 ** -14 * rest) / 1024;
  };

  const floats = (dtype, part) => {
    const view = new DataView(part.buffer, part.byteOffset, part.byteLength);
    if (dtype === "BF16") {
      const numbers = m.floats(part.length / 2);
      const words = new Uint32Array(numbers.buffer, numbers.byteOffset, numbers.length);
      for (let i = 0; i < words.length; i++) words[i] = view.getUint16(2 * i, true) << 16;
      return numbers;
    }
    if (dtype === "F16") return Float32Array.from({ length: part.length / 2 }, (_, i) => half(view.getUint16(2 * i, true)));
    if (dtype === "F32") return Float32Array.from({ length: part.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
    throw new Error(`weights: no code for numbers of type ${dtype}`);
  };

  // Eight codes of b bits fill b bytes, least significant bits first, row by row (postx/quant/_pack.py).
  const codesOf = (part, O, I, bits) => {
    const stride = Math.ceil(I / 8) * bits;
    const codes = new Uint8Array(O * I);
    for (let o = 0; o < O; o++) {
      let [held, room, at] = [0, 0, o * stride];
      for (let i = 0; i < I; i++) {
        if (room < bits) {
          held |= part[at++] << room;
          room += 8;
        }
        codes[o * I + i] = held & ((1 << bits) - 1);
        held >>= bits;
        room -= bits;
      }
    }
    return codes;
  };

  const uniform = (parts, [O, I], { bits, grid, group }) => {
    if (group !== "row" || grid === "asymmetric") throw new Error(`weights: no code for groups ${group} of a grid ${grid}`);
    const [codes, scale] = [codesOf(parts.codes, O, I, bits), parts.scale];
    const zero = 2 ** (bits - 1) - (grid === "midrise" ? 0.5 : 0);
    const weight = m.floats(O * I);
    for (let at = 0; at < O * I; at++) weight[at] = (codes[at] - zero) * scale[(at / I) | 0];
    return weight;
  };

  const POWERS = [1, 3, 9, 27, 81];
  const ternary = (parts, [O, I]) => {
    const stride = Math.ceil(I / 5);
    const weight = m.floats(O * I);
    for (let at = 0; at < O * I; at++) {
      const i = at % I;
      const byte = parts.codes[((at / I) | 0) * stride + ((i / 5) | 0)];
      weight[at] = ((((byte / POWERS[i % 5]) | 0) % 3) - 1) * parts.scale[0];
    }
    return weight;
  };
  // GPTQ rounds to the same grid, and stores the same; an order of the inputs is not read here.
  const gptq = (parts, shape, how) => {
    if (parts.order) throw new Error("weights: no code for an order of the inputs");
    return uniform(parts, shape, how);
  };
  const METHODS = { uniform, gptq, ternary };

  // Rows of E matrices [O, I], one under the other, as the model keeps them: [E, I, O].
  const turned = (rows, E, I) => {
    const O = rows.length / E / I;
    const table = m.floats(rows.length);
    for (let e = 0; e < E; e++)
      for (let o = 0; o < O; o++)
        for (let i = 0; i < I; i++) table[(e * I + i) * O + o] = rows[(e * O + o) * I + i];
    return table;
  };
  m.turned = turned;

  // {name: Float32Array} of a file: every weight by its name in the model, packed or not.
  m.open = (bytes) => {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const { postx = "1", packed = "{}" } = head.__metadata__;
    if (postx !== "1") throw new Error(`weights: of format ${postx}; this page reads format 1`);
    const raw = (name) => {
      const { dtype, data_offsets: [from, to] } = head[name];
      const part = bytes.subarray(8 + length + from, 8 + length + to);
      return dtype === "U8" ? part : floats(dtype, part);
    };
    const weights = {};
    for (const name in head) if (name !== "__metadata__" && !name.includes("/")) weights[name] = raw(name);
    for (const [layer, { method, shape, how }] of Object.entries(JSON.parse(packed))) {
      if (!METHODS[method]) throw new Error(`weights: no code for ${layer}, packed by ${method}`);
      const start = `${layer}.weight/`;
      const own = Object.keys(head).filter((name) => name.startsWith(start));
      const parts = Object.fromEntries(own.map((name) => [name.slice(start.length), raw(name)]));
      const weight = METHODS[method](parts, shape, how);
      if (how.experts) weights[layer] = turned(weight, how.experts, shape[1]);
      else weights[`${layer}.weight`] = weight;
    }
    return weights;
  };
};
