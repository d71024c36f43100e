// One model at work on the reader's text: its switches, the text box, and every view of what it does.
(() => {
  const page = (window.postx.playground ??= {});
  const [MOST, WRITE] = [3000, 100]; // bytes of text that are read, bytes that one click writes

  const headsOf = (told, wanted) =>
    told.blocks.flatMap(({ mixer, H }, block) =>
      wanted(mixer) ? Array.from({ length: H }, (_, h) => [`${block}/${h}`, `block ${block + 1}, head ${h + 1}`]) : []);

  page.desk = (data) => {
    const { make } = page;
    let [model, bits, reader, place, writing, picked, trained, latest] = [data.first, "4", null, 0, false, false, 0, null];
    const file = () => data.models[model].files[bits];

    // ---- the parts
    const button = (words, onclick) => make("button", { type: "button", className: "pp-button", onclick, disabled: true }, words);
    const load = make("button", { type: "button", className: "pp-button pp-main", onclick: () => load.getAttribute("aria-disabled") === "true" || start() });
    // Not `disabled`: a button that is would lose the focus to nothing.
    const idle = (yes) => load.setAttribute("aria-disabled", yes);
    const note = make("p", { className: "pp-note" });
    const box = make("textarea", { rows: 5, value: data.start, maxLength: MOST, spellcheck: false, autocapitalize: "off" });
    const live = make("span", { className: "pp-live" });
    const said = make("output", { className: "pp-said", ariaLive: "polite" });
    const heat = make("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0.6 });
    const seed = make("input", { type: "number", min: 0, max: 9999, value: 0 });
    const buttons = [button("Write 1 byte", () => write(1)), button(`Write ${WRITE}`, () => write(WRITE)), button("Stop", () => halt())];
    const anew = make("button", { type: "button", className: "pp-button", onclick: () => again() }, "Start again");
    const names = { here: "this model" };
    const text = page.bytesView((at) => {
      box.focus();
      box.selectionStart = box.selectionEnd = page.text(text.bytes.slice(0, at + 1)).length;
      moved();
    });
    const [next, meters, curve] = [page.nextView(), page.metersView(), page.curveView(names)];
    const arcs = page.arcsView(() => {
      picked = true; // from now on it is the reader who says which head
      look();
    });
    const table = page.tableView(() => state());
    const experts = page.expertsView();

    // ---- what the reader does
    const split = (view) => view.picker.value.split("/").map(Number);
    const look = () => !arcs.box.hidden && reader.ask("look", { place, block: split(arcs)[0], head: split(arcs)[1] });
    const state = () => !table.box.hidden && reader.ask("table", { block: split(table)[0], head: split(table)[1] });
    const ask = () => {
      if (!reader) return;
      reader.ask("next", { place });
      if (!experts.box.hidden) reader.ask("experts", { place });
      look();
    };
    const moved = () => {
      place = page.bytes(box.value.slice(0, box.selectionStart)).length;
      text.mark(place);
      ask();
    };
    const read = () => {
      writing = false;
      place = page.bytes(box.value.slice(0, box.selectionStart)).length;
      const bytes = Uint8Array.from(page.bytes(box.value)).slice(0, MOST);
      text.cut(bytes.length);
      reader?.ask("read", { bytes });
      if (reader && bytes.length === 0) ask();
    };
    const write = (n) => {
      if (text.bytes.length >= MOST) return (said.textContent = `The text is full: ${MOST.toLocaleString("en-US")} bytes.`);
      writing = true;
      reader.ask("write", { n: Math.min(n, MOST - text.bytes.length), temperature: Math.max(0, Number(heat.value)), seed: Number(seed.value) });
    };
    const halt = () => {
      writing = false;
      reader.ask("stop");
    };
    // The text and the cursor as the page began; the model stays.
    const again = () => {
      box.value = data.start;
      box.setSelectionRange(data.start.length, data.start.length);
      box.scrollTop = 0;
      read();
    };
    box.oninput = read;
    document.addEventListener("selectionchange", () => document.activeElement === box && moved());

    // ---- what the worker says
    const rows = ({ from, rows: news, ms, cache, state: held, busy }) => {
      text.put(from, news);
      if (writing) {
        box.value = page.text(text.bytes);
        box.scrollTop = box.scrollHeight;
        place = text.bytes.length;
      }
      text.mark(place);
      page.later(meters, () => {
        meters.show({ cache, state: held });
        live.textContent = `${ms.toFixed(1)} ms a byte`;
      });
      page.later(curve, () => curve.show({ here: text.bits }, trained));
      ask();
      if (busy) return;
      state();
      if (!picked && !arcs.box.hidden) reader.ask("sharpest", { place });
      page.later(said, () => {
        if (text.bits.length) said.textContent = `${text.bits.length} bytes read: ${text.mean().toFixed(2)} bits a byte, the last 64 at ${text.mean(64).toFixed(2)}.`;
      });
    };
    const on = {
      rows,
      next: (told) => page.later(next, () => next.show(told.next)),
      // An answer about bytes that have been deleted since comes too late.
      look: ({ p }) => page.later(arcs, () => p.length <= text.bytes.length + 1 && arcs.show(p, text.bytes)),
      table: (told) => page.later(table, () => table.show(told)),
      experts: (told) => page.later(experts, () => experts.show(told)),
      sharpest({ head }) {
        arcs.picker.value = head.join("/");
        look();
      },
      failed: (words) => (said.textContent = `The model stopped: ${words}`),
    };

    const start = async () => {
      const [mine, one] = [file(), data.models[model]]; // another may be chosen while this one comes
      latest = mine.id;
      idle(true);
      load.textContent = "Loading…";
      try {
        const heard = {}; // what it says is not for the reader's eyes before it takes the other's place
        const fresh = await page.reader(mine.id, heard);
        if (latest !== mine.id) return fresh.end();
        reader?.end();
        Object.assign(heard, on);
        reader = fresh;
      } catch (error) {
        if (latest !== mine.id) return;
        said.textContent = `Nothing was loaded: ${error.message}.`;
        return offer();
      }
      buttons.forEach((each) => (each.disabled = false));
      names.here = one.name;
      trained = one.trained;
      arcs.offer(headsOf(reader.told, (mixer) => mixer === "attention"));
      table.offer(headsOf(reader.told, (mixer) => mixer !== "attention"));
      experts.box.hidden = !reader.told.blocks.some(({ E }) => E);
      text.put(0, []);
      picked = false;
      views.hidden = false;
      offer();
      read();
    };

    // What the button would load, and what it costs.
    const offer = () => {
      const mine = file();
      const here = reader?.id === mine.id;
      idle(here);
      load.textContent = here ? `${data.models[model].name}, ${mine.name}: loaded` : `Load ${data.models[model].name}, ${mine.name} (${page.megabytes(mine.bytes)})`;
      note.textContent = `${data.models[model].says} ${mine.says}`;
    };
    const widths = make("div");
    const choose = (name) => {
      model = name;
      const files = Object.entries(data.models[model].files);
      if (!data.models[model].files[bits]) bits = data.models[model].files["4"] ? "4" : files[0][0];
      widths.replaceChildren(page.radios("Bits a weight", files.map(([key, { name: words }]) => [key, words]), bits, (key) => {
        bits = key;
        offer();
      }));
      offer();
    };
    const switches = page.radios("Model", Object.entries(data.models).map(([key, { name }]) => [key, name]), model, choose);
    choose(model);

    const views = make("div", { className: "pp-views", hidden: true },
      text.box, make("p", { className: "pp-line-of-words" }, said, " ", live), text.table,
      make("div", { className: "pp-pair" }, next.box, meters.box), curve.box, arcs.box, table.box, experts.box);
    return make("section", { className: "pp-desk", ariaLabel: "A model at work" },
      make("div", { className: "pp-switches" }, switches, widths), note, load,
      make("label", { className: "pp-text" }, "Your text", box),
      make("div", { className: "pp-write" }, ...buttons, anew,
        make("span", { className: "pp-dials" }, make("label", {}, "temperature ", heat), make("label", {}, "seed ", seed))),
      views);
  };
})();
