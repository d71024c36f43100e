// The planner: choices above, what they cost below, and which models do what is asked. Its state stands in the address.
const planner = (figure, data) => {
  const P = postx.planner;
  const evaluate = P.compile(data);
  const tags = Object.fromEntries(data.tags);
  const own = { name: "own", D: 4096, layers: data.own.layers };
  const range = (name, label, stops) => ({ name, label, stops });
  const RANGES = [
    range("context", "Tokens of each text", data.contexts),
    range("batch", "Users at once", data.batches),
  ];
  const BITS = [
    ["weight_bits", "Bits a weight", data.bits.weight],
    ["cache_bits", "of the cache", data.bits.cache],
    ["state_bits", "of the state", data.bits.state],
  ];
  const option = (value, text = value) => `<option value="${value}">${text}</option>`;
  const select = (name, label, options) =>
    `<label class="pl-${name}">${label}<select name="${name}">${options.join("")}</select></label>`;

  const root = document.createElement("div");
  root.className = "px-plan";
  root.innerHTML = `
    <div class="pl-ask">
      ${select("model", "Model", [...data.models.map((m) => option(m.name)), option("own", "a pattern of your own")])}
      ${select("device", "Device", data.devices.map((d) => option(d.name)))}
      ${RANGES.map(
        ({ name, label, stops }) => `<label>${label}
          <input type="range" name="${name}" min="0" max="${stops.length - 1}" value="${stops.indexOf(data.defaults[name])}">
          <span class="pl-said" data-said="${name}"></span></label>`,
      ).join("")}
      <div class="pl-few">
        ${BITS.map(([name, label, choices]) => select(name, label, choices.map((bits) => option(bits)))).join("")}
        <label>Memory, GB<input type="number" name="memory" min="1" step="any"></label>
        <label>Dollars an hour<input type="number" name="price" min="0" step="any"></label>
      </div>
    </div>
    <div class="pl-answer" aria-live="polite"></div>
    <div class="pl-memory"></div>
    <div class="pl-key"></div>
    <div class="pl-layers">
      <div class="pl-few">
        <label class="pl-text">Layers, first to last<input type="text" name="layers" spellcheck="false" autocomplete="off"></label>
        ${select("width", "Width", data.own.widths.map((D) => option(D)))}
        ${select("window", "Window", [512, 1024, 2048, 4096, 8192, 16384].map((n) => option(n)))}
        ${select("brush", "A click makes a layer", data.tags.map(([key, tag]) => option(key, `${key}: ${tag}`)))}
      </div>
      <div class="pl-strip" role="group" aria-label="Layers: arrow keys move, Enter changes one"></div>
      <p class="pl-legend"></p>
      <p class="pl-wrong" role="status"></p>
    </div>
    <div class="pl-pictures"><div class="pl-speed"></div><ul class="pl-told"></ul></div>
    <div class="pl-sums pl-scroll" tabindex="0" role="region" aria-label="Arithmetic, bytes, time and price"></div>
    <div class="pl-quality pl-scroll" tabindex="0" role="region" aria-label="What is published"></div>
    <p class="pl-title">Which models do it?</p>
    <label class="pl-check"><input type="checkbox" name="recall"> Only models that can find again what stood anywhere in the text (recall)</label>
    <p class="pl-count" role="status"></p>
    <div class="pl-models pl-scroll" tabindex="0" role="region" aria-label="All models"></div>`;
  figure.querySelector(":scope > svg").replaceWith(root);

  const input = Object.fromEntries([...root.querySelectorAll("[name]")].map((each) => [each.name, each]));
  const block = (name) => root.querySelector(`.pl-${name}`);
  for (const [name] of BITS) input[name].value = data.defaults[name];
  input.device.value = data.device;
  input.brush.value = "S";
  input.width.value = own.D;

  const model = () => data.models.find((m) => m.name === input.model.value) ?? { ...own, D: Number(input.width.value) };
  const device = () => {
    const told = data.devices.find((d) => d.name === input.device.value);
    const { flops, bandwidth } = told;
    const number = (name, least, unit) =>
      input[name].value !== "" && Number(input[name].value) >= least ? Number(input[name].value) * unit : told[name];
    return { flops, bandwidth, share: data.share, memory: number("memory", 1e-3, 1e9), price: number("price", 0, 1) };
  };
  const stop = ({ name, stops }) => stops[input[name].value];
  const asked = () => ({
    ...Object.fromEntries(RANGES.map((each) => [each.name, stop(each)])),
    ...Object.fromEntries(BITS.map(([name]) => [name, Number(input[name].value)])),
  });
  const row = (it = model()) => P.row(data, it, input.layers.value, Number(input.window.value));

  // A model or a width was chosen: its layers, and the window that they have.
  const fresh = () => {
    input.layers.value = model().layers;
    input.window.value = model().window || data.own.window;
  };

  const kind = (key) => tags[key] ?? { Z: "shared attention", F: "MLP" }[key] ?? "MLP of experts";
  const strip = () => {
    const places = P.places(input.layers.value);
    const before = model().places && P.places(model().layers);
    block("strip").innerHTML = places
      .map((name, i) => {
        const alone = "FEV".includes(name);
        const tag = [...name].map(kind);
        const color = alone ? "neutral" : data.colors[name[0]] ?? "attention";
        const changed = before && before[i] !== name ? " data-changed" : "";
        return `<button type="button" ${alone ? 'aria-disabled="true"' : ""} tabindex="-1"${changed}
          style="--px-cell: var(--px-${color})" aria-label="layer ${i + 1}, ${tag.join(" beside ")}">${name}</button>`;
      })
      .join("");
    block("strip").firstElementChild?.setAttribute("tabindex", "0");
    block("legend").textContent = [...new Set(places.join(""))].map((key) => `${key}: ${kind(key)}`).join(", ");
  };

  const draw = () => {
    const [it, choices, ceilings] = [model(), asked(), device()];
    let numbers;
    try {
      numbers = row(it);
      block("wrong").textContent = "";
    } catch (error) {
      block("wrong").textContent = `Layers: ${error.message}.`; // the figures below stay those of the last good ones
      return;
    }
    const at = (context) => evaluate({ ...numbers, ...choices, ...ceilings, context });
    const found = at(choices.context);
    const published = it.places && input.layers.value === it.layers && it;
    for (const { name } of RANGES) {
      const said = P.whole(choices[name]);
      root.querySelector(`[data-said="${name}"]`).textContent = said;
      input[name].setAttribute("aria-valuetext", said);
    }
    const told = data.devices.find((d) => d.name === input.device.value);
    input.memory.placeholder = told.memory / 1e9;
    input.price.placeholder = told.price || "yours";
    input.width.parentElement.hidden = Boolean(it.places);
    input.window.parentElement.hidden = !numbers.window;
    const dots = published
      ? data.measured.filter(
          (dot) =>
            dot.model === it.name &&
            dot.device === input.device.value &&
            choices.batch === 1 &&
            Math.abs(dot.weight_bits - choices.weight_bits) < 0.5,
        )
      : [];
    block("memory").innerHTML = P.memory(data, found, ceilings);
    block("speed").innerHTML = P.speed(
      data,
      (context) => {
        const { tokens_a_second, total_bytes, usable } = at(context);
        return { tokens_a_second, fits: total_bytes <= usable };
      },
      choices,
      dots,
    );
    block("key").innerHTML = P.key(data, found);
    block("sums").innerHTML = P.sums(data, found, choices, ceilings);
    block("told").innerHTML = P.told(data, found, choices)
      .map((sentence) => `<li>${sentence}</li>`)
      .join("");
    block("quality").innerHTML = P.quality(data, published, input.device.value, told);
    const verdicts = P.survivors(data, evaluate, choices, ceilings, input.recall.checked);
    block("answer").innerHTML = P.answer(data, found, choices, ceilings, verdicts);
    block("count").textContent = P.count(data, verdicts, choices, ceilings, input.recall.checked);
    block("models").innerHTML = P.table(data, verdicts);
  };

  fresh();
  const usual = (name) => ({ layers: model().layers, window: String(model().window || data.own.window) })[name];
  const address = P.address(input, RANGES, fresh, usual);
  root.addEventListener("input", ({ target }) => {
    if (target.name === "model" || target.name === "width") fresh();
    if (target.name === "model" || target.name === "width" || target.name === "layers") strip();
    draw();
    address.write();
  });
  block("strip").addEventListener("click", ({ target }) => {
    const cell = target.closest("button");
    if (!cell || cell.hasAttribute("aria-disabled")) return;
    const at = [...block("strip").children].indexOf(cell);
    const places = P.places(input.layers.value);
    places[at] = input.brush.value;
    input.layers.value = places.map((name) => (name.length > 1 ? `(${name})` : name)).join("");
    strip();
    move(at);
    draw();
    address.write();
  });
  const move = (at) => {
    const cells = [...block("strip").children];
    const next = cells[Math.min(Math.max(at, 0), cells.length - 1)];
    cells.forEach((cell) => (cell.tabIndex = cell === next ? 0 : -1));
    next.focus();
  };
  block("strip").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e6, End: 1e6 }[event.key];
    if (!by) return;
    event.preventDefault();
    move([...block("strip").children].indexOf(document.activeElement) + by);
  });
  block("models").addEventListener("click", ({ target }) => {
    if (!target.dataset.model) return;
    input.model.value = target.dataset.model;
    input.model.dispatchEvent(new Event("input", { bubbles: true }));
    input.model.focus();
  });
  block("answer").addEventListener("click", ({ target }) => {
    if (!target.closest("button")) return;
    block("title").scrollIntoView();
    input.recall.focus({ preventScroll: true });
  });
  const start = () => {
    let wrong = "";
    try {
      row();
    } catch (error) {
      wrong = `Layers of this address: ${error.message}. The model's own are shown.`;
      fresh();
    }
    strip();
    draw();
    block("wrong").textContent = wrong;
  };
  address.read();
  start();
  addEventListener("hashchange", () => address.read() && start());
};

// All files of the planner are there when the page is ready, whatever their order.
addEventListener("DOMContentLoaded", () => postx.widget("planner", planner));
