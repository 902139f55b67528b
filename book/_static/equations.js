// Equations that are too wide scroll inside themselves; this lets the keyboard reach them.
const reachEquations = () => {
  document.querySelectorAll('mjx-container[display="true"], div.math').forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
};
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachEquations));
window.addEventListener("resize", reachEquations);
