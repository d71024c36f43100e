// The state of one SSD head as a picture: 64 x 64 numbers, blue below zero and red above, as strong as they are large.
(() => {
  const page = (window.postx.playground ??= {});
  const [BELOW, ABOVE] = [[75, 95, 246], [205, 10, 95]];

  page.tableView = (choose) => {
    const { make } = page;
    const picker = page.picker("SSD head", [], choose);
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
      show({ table, size: [K, V], half }) {
        [canvas.width, canvas.height] = [V, K];
        const pen = canvas.getContext("2d");
        const image = pen.createImageData(V, K);
        const most = table.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
        table.forEach((value, i) => {
          image.data.set(value < 0 ? BELOW : ABOVE, 4 * i);
          image.data[4 * i + 3] = 255 * Math.sqrt(Math.abs(value) / most);
        });
        pen.putImageData(image, 0, 0);
        const bytes = half < 10 ? half.toFixed(1) : Math.round(half).toLocaleString("en-US");
        words.textContent = `A row for each channel of the key, a column for each of the value. Half of what it holds is gone after ${bytes} bytes, at the rate of the last 64.`;
        canvas.setAttribute("aria-label", `A table of ${K} times ${V} numbers, the largest ${most.toFixed(1)}. ${words.textContent}`);
      },
    };
  };
})();
