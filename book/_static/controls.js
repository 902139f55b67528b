// What the theme's buttons do, without code in attributes: the Content-Security-Policy of the pages forbids that.
const does = { print: () => window.print(), fullscreen: () => window.toggleFullScreen() };
document.querySelectorAll("button[data-does]").forEach((button) => {
  button.addEventListener("click", does[button.dataset.does]);
});
