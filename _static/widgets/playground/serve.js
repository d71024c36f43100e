// What the worker does: it reads the text byte by byte, writes on, and answers what the page asks about a place in it.
// Before the text stands byte 0, as before every document that the models were trained on. Place n is before byte n.
(window.postx.parts ??= {}).serve = (m) => {
  const LAST = 40; // bytes that the picture of attention shows
  const TURN = 24; // milliseconds of work between two looks at what the page has asked meanwhile
  const surprise = (logits, byte) => -Math.log2(m.softmax(logits)[byte]);

  // A number in [0, 1) that depends on a seed and a place alone: bytes written one by one are those written at once.
  const mix = (x) => {
    x = Math.imul(x ^ (x >>> 16), 0x45d9f3b);
    x = Math.imul(x ^ (x >>> 16), 0x45d9f3b);
    return x ^ (x >>> 16);
  };
  m.number = (seed, place) => (mix(mix(seed + 0x9e3779b1) + place) >>> 0) / 2 ** 32;

  // A byte drawn from softmax(logits / temperature); at temperature 0 the likeliest, the first of equals.
  m.draw = (logits, temperature, number) => {
    if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
    const p = m.softmax(logits, temperature);
    let left = number;
    for (let k = 0; k < p.length; k++) if ((left -= p[k]) < 0) return k;
    return p.lastIndexOf(p.reduce((a, b) => Math.max(a, b)));
  };

  // A reader of texts: `read` and `write` say what is to be done, `turn` does a piece of it and tells what is new.
  m.reader = (net) => {
    const [bytes, logits] = [[], []];
    let [told, plan, ms, news] = [0, null, 0, true]; // told: how many bytes the page has heard of; plan: what to write
    const behind = () => net.length < bytes.length + 1;
    const known = (place) => Math.min(place, net.length - 1, bytes.length);
    return {
      bytes,
      logits,
      // Whether there is a place to ask about: an edit can lead back before the first byte, and the page asks again.
      get ready() {
        return net.length > 0;
      },
      read(text) {
        plan = null;
        let same = 0;
        while (same < Math.min(text.length, bytes.length) && text[same] === bytes[same]) same++;
        bytes.splice(same, Infinity, ...text.subarray(same));
        net.back(same + 1);
        told = Math.min(told, same);
        news = true;
      },
      write(n, temperature, seed) {
        plan = { left: n, temperature, seed };
      },
      stop() {
        plan = null;
      },
      // Work until the clock says so; null where there is nothing to do.
      turn(until, clock) {
        const start = clock();
        let steps = 0;
        // One byte at least: where the machine is busy, the time may be over before it began.
        while (!steps || clock() < until) {
          if (!behind()) {
            if (!plan?.left) break;
            plan.left--;
            bytes.push(m.draw(logits[bytes.length], plan.temperature, m.number(plan.seed, bytes.length)));
          }
          logits[net.length] = net.step(net.length ? bytes[net.length - 1] : 0);
          steps++;
        }
        if (!steps && !news) return null;
        news = false;
        const weight = ms ? Math.min(1, steps / 32) : 1; // one slow byte is not the speed
        if (steps) ms += weight * ((clock() - start) / steps - ms);
        const seen = Math.max(told, net.length - 1);
        const rows = bytes.slice(told, seen).map((byte, i) => [byte, surprise(logits[told + i], byte)]);
        const from = told;
        told = seen;
        return { from, rows, ms, cache: net.cache(), state: net.state(), busy: behind() || Boolean(plan?.left) };
      },
      // What follows each of the tokens `asked` where some others, and nothing before them, have been read: probabilities.
      recall(ids, asked) {
        net.back(0);
        const to = () => ids.slice(net.length).forEach((id) => net.step(id));
        to();
        return asked.map((id) => {
          const p = m.softmax(net.step(id));
          net.back(ids.length);
          to(); // where a state was, there is a copy of it or the way from one
          return p;
        });
      },
      // What may come at a place, where attention looks from there, and what a table holds now.
      next(place) {
        const p = m.softmax(logits[known(place)]);
        const order = [...p.keys()].sort((a, b) => p[b] - p[a]);
        return { place: known(place), next: order.slice(0, 8).map((byte) => [byte, p[byte]]) };
      },
      look: (place, block, head) => ({ place: known(place), p: net.mixers[block].look(head, known(place)) }),
      // The head of attention that looks hardest at one byte other than its own.
      sharpest(place) {
        const heads = net.mixers.flatMap((mixer, block) =>
          mixer.look ? Array.from({ length: mixer.heads }, (_, head) => [block, head]) : []);
        const share = ([block, head]) => Math.max(0, ...net.mixers[block].look(head, known(place)).slice(-LAST, -1));
        return heads.map((one) => [share(one), one]).sort((a, b) => b[0] - a[0])[0]?.[1];
      },
      // Which experts read the byte before a place, and the share of all bytes up to it that each has read.
      experts(place) {
        const at = known(place);
        const places = net.routed.map(({ block, E, chosen }) => {
          const share = new Array(E).fill(0);
          for (let t = 0; t <= at; t++) for (const [e] of chosen[t]) share[e] += 1 / (at + 1);
          return { block, share, chosen: chosen[at] };
        });
        return { place: at, places };
      },
      table(block, head) {
        const mixer = net.mixers[block];
        return { table: mixer.table(head), size: mixer.size, halves: mixer.halfLives(head), kind: mixer.kind };
      },
    };
  };

  m.serve = (port) => {
    let reader = null;
    const gate = new MessageChannel(); // a turn later than what waits in the queue, and without a timer's 4 ms
    const go = () => gate.port2.postMessage(0);
    const say = (what, more = {}) => port.postMessage({ say: what, ...more });
    let running = false;
    gate.port1.onmessage = () => {
      const done = reader.turn(performance.now() + TURN, () => performance.now());
      if (done) say("rows", done);
      running = Boolean(done?.busy);
      if (running) go();
    };
    const answers = {
      load({ told, body }) {
        const weights = m.open(m.fromBase64(body));
        reader = told.network === "denoiser" ? m.filler(told, weights, say) : m.reader(m.network(told, weights));
        say("ready");
      },
      read: ({ bytes }) => reader.read(bytes),
      write: ({ n, temperature, seed }) => reader.write(n, temperature, seed),
      stop: () => reader.stop(),
      next: ({ place }) => reader.ready && say("next", reader.next(place)),
      look: ({ place, block, head }) => reader.ready && say("look", { block, head, ...reader.look(place, block, head) }),
      experts: ({ place }) => reader.ready && say("experts", reader.experts(place)),
      sharpest: ({ place }) => reader.ready && say("sharpest", { head: reader.sharpest(place) }),
      table: ({ block, head }) => reader.ready && say("table", { block, head, ...reader.table(block, head) }),
      recall: ({ ids, asked }) => say("recall", { ids, asked, p: reader.recall(ids, asked) }),
      fill: (ask) => reader.fill(ask),
    };
    port.onmessage = ({ data }) => {
      answers[data.ask](data);
      if (!running && (data.ask === "read" || data.ask === "write")) {
        running = true;
        go();
      }
    };
  };
};
