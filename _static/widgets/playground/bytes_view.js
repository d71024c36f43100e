// The text, each byte on a ground that is the stronger the more it surprised; a table of the hardest says it in words.
(() => {
  const page = (window.postx.playground ??= {});
  const FULL = 8; // bits: a byte that was one among 256

  page.bytesView = (pick) => {
    const { make } = page;
    const box = make("div", { className: "pp-bytes", "aria-hidden": "true" });
    const rows = make("tbody");
    const head = make("tr", {}, ...["Byte", "Place", "Bits", "After"].map((words) => make("th", { scope: "col" }, words)));
    const table = make("details", { className: "pp-hard" }, make("summary", {}, "The hardest bytes, as a table"),
      make("table", {}, make("thead", {}, head), rows));
    const [bytes, bits, spans] = [[], [], []];
    let [here, marked, stay, drawn] = [0, null, false, 0]; // stay: the reader has scrolled up; drawn: bytes that are, as they are
    box.addEventListener("scroll", () => (stay = box.scrollHeight - box.scrollTop - box.clientHeight > 40), { passive: true });
    box.onclick = ({ target }) => spans.includes(target) && pick(spans.indexOf(target));

    // A character of several bytes stands at its first; its others are dots.
    const paint = (from) => {
      let at = from;
      while (at > 0 && from - at < 3 && bytes[at] >= 0x80) at--; // it may have been waiting for its other bytes
      for (const sign of page.text(bytes.slice(at))) {
        const own = page.bytes(sign);
        own.forEach((byte, i) => {
          const odd = own.length === 1 && byte !== 10 && (byte < 32 || byte > 126);
          spans[at + i].textContent = i ? "·" : byte === 10 ? "⏎" : odd ? page.name(byte) : sign;
          spans[at + i].className = i || odd || byte === 10 ? "pp-odd" : "";
        });
        at += own.length;
      }
    };

    const hardest = () => {
      if (!table.open) return;
      const order = bits.map((_, i) => i).sort((a, b) => bits[b] - bits[a]).slice(0, 10);
      rows.replaceChildren(...order.map((i) =>
        make("tr", {}, make("th", { scope: "row" }, page.name(bytes[i])), make("td", {}, String(i + 1)),
          make("td", {}, bits[i].toFixed(1)), make("td", {}, page.text(bytes.slice(Math.max(0, i - 24), i)).replace(/\n/g, "⏎")))));
    };
    table.ontoggle = hardest;

    const mark = () => {
      marked?.classList.remove("pp-here");
      marked = spans[here - 1];
      marked?.classList.add("pp-here");
    };

    const draw = () => {
      if (drawn < Math.max(spans.length, bytes.length)) {
        const from = drawn;
        spans.splice(from).forEach((span) => span.remove());
        while (box.lastChild && !box.lastChild.lastChild) box.lastChild.remove();
        for (let i = from; i < bytes.length; i++) {
          spans.push(make("span", { title: `${bits[i].toFixed(1)} bits` }));
          spans[i].style.setProperty("--bits", `${Math.min(1, bits[i] / FULL) * 100}%`);
          if (!i || bytes[i - 1] === 10) box.append(make("div")); // a line in a box of its own: one byte lays out one line
          box.lastChild.append(spans[i]);
        }
        paint(from);
        drawn = bytes.length;
        hardest();
      }
      mark();
      if (!stay) box.scrollTop = box.scrollHeight; // last: to ask where the end is lays out the text
    };

    return {
      box,
      table,
      bytes,
      bits,
      // [byte, bits] from place `from` on; what stood there is gone.
      put(from, news) {
        bytes.length = bits.length = from;
        for (const [byte, loss] of news) {
          bytes.push(byte);
          bits.push(loss);
        }
        drawn = Math.min(drawn, from);
        page.later(box, draw);
      },
      // Only the first n bytes are still there.
      cut(n) {
        if (n < bytes.length) this.put(n, []);
      },
      mark(place) {
        here = place;
        page.later(box, draw);
      },
      mean: (last = bits.length) => {
        const some = bits.slice(-last);
        return some.reduce((a, b) => a + b, 0) / Math.max(1, some.length);
      },
    };
  };
})();
