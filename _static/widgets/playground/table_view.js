// The state of one head as a picture: a table of numbers, blue below zero and red above, as strong as they are large.
(() => {
  const page = (window.postx.playground ??= {});
  const [BELOW, ABOVE] = [[75, 95, 246], [205, 10, 95]];

  const bytes = (n) => (n < 10 ? n.toFixed(1) : n < 1e6 ? Math.round(n).toLocaleString("en-US") : "over a million");
  // What fading does to a table; halves: bytes until half of it is gone, one number, or one for each row.
  page.fadingWords = (kind, halves) => {
    const order = [...halves].sort((a, b) => a - b);
    const rate = "at the rate of the last 64";
    if (order.length > 1)
      return `Each row fades by itself: half of it is gone after ${bytes(order[0])} to ${bytes(order.at(-1))} bytes, in the middle ${bytes(order[order.length >> 1])}, ${rate}. What a byte takes out goes at once.`;
    const rest = kind === "gated_deltanet" ? " What stands under a key that is written again goes at once." : "";
    return `Half of what it holds has faded after ${bytes(order[0])} bytes, ${rate}.${rest}`;
  };

  page.tableView = (choose) => {
    const { make } = page;
    const picker = page.picker("Head of state", [], choose);
    const canvas = make("canvas", { className: "pp-table", width: 64, height: 64, role: "img", ariaLabel: "A table: nothing is read yet" });
    const words = make("p", { className: "pp-words" });
    const box = make("section", { ariaLabel: "State" }, make("h2", {}, "What a state holds at the end"), picker.label, canvas, words);
    return {
      box,
      picker: picker.select,
      offer(heads) {
        box.hidden = heads.length === 0;
        picker.select.replaceChildren(...heads.map(([key, name]) => make("option", { value: key }, name)));
      },
      show({ table, size: [K, V], kind, halves }) {
        [canvas.width, canvas.height] = [V, K];
        const pen = canvas.getContext("2d");
        const image = pen.createImageData(V, K);
        const most = table.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
        table.forEach((value, i) => {
          const color = value < 0 ? BELOW : ABOVE;
          for (let c = 0; c < 3; c++) image.data[4 * i + c] = color[c];
          image.data[4 * i + 3] = 255 * Math.sqrt(Math.abs(value) / most);
        });
        pen.putImageData(image, 0, 0);
        words.textContent = `A row for each channel of the key, a column for each of the value; red is above zero, blue below. ${page.fadingWords(kind, halves)}`;
        canvas.setAttribute("aria-label", `A table of ${K} times ${V} numbers, the largest ${most.toFixed(1)}. ${words.textContent}`);
      },
    };
  };
})();
