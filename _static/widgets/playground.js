// A model in the page: the parts in playground/ put together. Nothing is loaded before a click, and each click says what
// it costs. The figure keeps its still picture where no script runs.
addEventListener("DOMContentLoaded", () =>
  window.postx.widget("playground", (figure, data) => {
    const page = window.postx.playground;
    figure.querySelectorAll("svg, figcaption").forEach((still) => still.remove());
    figure.setAttribute("aria-label", "A model in the page");
    figure.append(page.desk(data));
    if (data.racers) figure.append(page.remember(data), page.race(data), page.beside(data), page.fill(data)); // a chapter has one model
  }),
);
