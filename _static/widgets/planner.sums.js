// The arithmetic of the planner: rows of numbers, and the formulas that Python wrote (postx/planner/formulas.py).
postx.planner ??= {};

// Functions that an expression may call beside its names; the same are in KNOWN of formulas.py.
postx.planner.known = {
  min: Math.min,
  max: Math.max,
  pow: Math.pow,
  floor: Math.floor,
  over: (a, b) => (b ? a / b : a >= 0 ? Infinity : -Infinity),
};

// evaluate(numbers) -> {name: value} of all formulas, each of which may use those before it.
postx.planner.compile = ({ formulas, inputs }) => {
  const { known } = postx.planner;
  const names = Object.keys(formulas);
  const lines = names.map((name) => `const ${name} = ${formulas[name]};`);
  const body = `${lines.join("\n")}\nreturn { ${names.join(", ")} };`;
  const all = new Function(...Object.keys(known), ...inputs, body);
  return (numbers) => all(...Object.values(known), ...inputs.map((name) => numbers[name]));
};

// "M(AS)F" -> ["M", "AS", "F"]
postx.planner.places = (layers) => [...layers.matchAll(/\(([^()]+)\)|([^()])/g)].map((found) => found[1] ?? found[2]);

// The parts of every place of a model with these layers, or an Error that says what is wrong.
postx.planner.parts = (data, model, layers) => {
  const { places } = postx.planner;
  const letters = data.letters[model.D];
  const wanted = places(layers);
  if (wanted.map((name) => (name.length > 1 ? `(${name})` : name)).join("") !== layers || !wanted.length)
    throw new Error("brackets go round two letters or more, such as (AS)");
  const of = (name) =>
    [...name].map((key) => {
      if (!letters[key] || (key === "F" && name !== "F")) throw new Error(`no layer has the letter ${key}`);
      return letters[key];
    });
  if (!model.places)
    return wanted.map((name) => {
      const alone = name === "F" || [...name].every((key) => data.follow[key] === "-");
      return [...of(name), ...(alone ? [] : [letters.F])];
    });
  const before = places(model.layers);
  if (before.length !== wanted.length) throw new Error(`${model.name} has ${before.length} layers, not ${wanted.length}`);
  return wanted.map((name, i) => {
    const own = model.places[i].map((part) => model.parts[part]);
    if (name === before[i]) return own;
    if ("FEV".includes(before[i]) || name === "F") throw new Error(`layer ${i + 1} is an MLP alone, and stays one`);
    return [...of(name), ...own.filter((part) => "FEV".includes(part[0]))];
  });
};

// The numbers of a row, as Row.numbers in postx/planner/rows.py.
postx.planner.row = (data, model, layers, window) => {
  const found = Object.fromEntries(data.fields.slice(1).map((field) => [field, 0]));
  const places = postx.planner.parts(data, model, layers);
  places.flat().forEach((part) => data.fields.slice(1).forEach((field, i) => (found[field] += part[i + 1])));
  if (model.places) found.weights += model.outside;
  else {
    const mixers = postx.planner.places(layers);
    const norms = places.reduce((sum, parts, i) => sum + 1 + (parts.length > mixers[i].length), 1);
    found.weights += 2 * data.own.vocabulary * model.D + model.D * norms;
  }
  const head = model.places ? model.head : data.own.vocabulary * model.D;
  found.matrix += head;
  const slides = places.flat().some((part) => part[data.fields.indexOf("slide")]);
  return { ...found, head, chosen: model.chosen ?? 0, window: slides ? window || model.window || data.own.window : 0 };
};

// Which models do what is asked, as `survivors` in postx/planner/__init__.py: [{model, bits, found, reasons}].
postx.planner.survivors = (data, evaluate, asked, device, recall) =>
  data.models.map((model) => {
    const row = postx.planner.row(data, model, model.layers);
    const numbers = (bits) => ({ ...row, ...asked, ...device, weight_bits: bits });
    const tried = data.tried.map((bits) => ({ bits, found: evaluate(numbers(bits)) }));
    const one = tried.find(({ found }) => found.total_bytes <= found.usable) ?? tried[tried.length - 1];
    return { model, ...one, reasons: postx.planner.reasons(data, model, row, one, asked, recall) };
  });
