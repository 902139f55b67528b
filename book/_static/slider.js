// Kernel-free sliders: a range input chooses one of the pictures stored with the page.
document.querySelectorAll("figure.repro-slider").forEach((figure) => {
  const frames = JSON.parse(figure.dataset.frames); // [{src, label}, ...]
  const image = figure.querySelector("img");
  const input = figure.querySelector("input");
  const output = figure.querySelector("output");

  const show = () => {
    const frame = frames[Number(input.value)];
    image.src = frame.src;
    image.alt = frame.label;
    output.textContent = frame.label;
    input.setAttribute("aria-valuetext", frame.label);
  };
  // Pictures load when the reader reaches for the slider, so that pages open light.
  const preload = () => frames.forEach((frame) => { new Image().src = frame.src; });
  input.addEventListener("focus", preload, { once: true });
  input.addEventListener("pointerenter", preload, { once: true });
  input.addEventListener("input", show);
  figure.querySelector(".repro-slider-control").hidden = false;
  show(); // a reloaded page may remember another position
});
