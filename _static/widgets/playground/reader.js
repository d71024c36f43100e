// A model at work beside the page: its weights come as a script when they are asked for, its sums are made in a worker.
// The worker is made of the text of the parts, as a page from disk may neither fetch nor import.
(() => {
  const page = (window.postx.playground ??= {});
  const base = new URL("../../playground/", document.currentScript?.src ?? location.href);
  const found = new Map();
  const waiting = new Map();

  window.postx.take = (id, told, body) => waiting.get(id)?.({ told, body });

  // {told, body} of a model; asked for once.
  page.weights = (id) => {
    if (!found.has(id)) {
      const script = document.createElement("script");
      const arrival = new Promise((resolve, reject) => {
        waiting.set(id, resolve);
        script.onerror = () => reject(new Error(`the weights ${id} did not come`));
      });
      arrival.catch(() => found.delete(id)).finally(() => script.remove());
      script.src = new URL(`weights_${id}.js`, base);
      found.set(id, arrival);
      document.head.append(script);
    }
    return found.get(id);
  };

  const source = () => {
    const parts = Object.values(window.postx.parts).map((part) => `(${part})(m);`);
    return `"use strict"; const m = {}; ${parts.join("\n")} m.serve(self);`;
  };

  // on: what to do with what the worker says, by its word: {ready, rows, next, look, table, step}.
  page.reader = async (id, on) => {
    const { told, body } = await page.weights(id);
    const worker = new Worker(URL.createObjectURL(new Blob([source()], { type: "text/javascript" })));
    const ask = (what, more = {}) => worker.postMessage({ ask: what, ...more });
    await new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => (data.say === "ready" ? resolve() : on[data.say]?.(data));
      worker.onerror = (event) => {
        reject(new Error(event.message));
        on.failed?.(event.message);
      };
      ask("load", { told, body });
    });
    return { id, told, ask, end: () => worker.terminate() };
  };
})();
