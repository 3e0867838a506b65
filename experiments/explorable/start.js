"use strict";
// The switch between light and dark, and the figures, one after another so that the page is never stuck.
const dark = matchMedia("(prefers-color-scheme: dark)"), themeButton = document.getElementById("theme");
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-pressed", String(theme === "dark"));
  redrawAll();
}
themeButton.addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
setTheme(dark.matches ? "dark" : "light");

const waiting = [drawFigure, autoencoderFigure, evidenceFigure, emFigure, boundFigure, gradientsFigure,
  covarianceFigure, betaFigure, menuFigure, trainFigure];
(function next() {
  const make = waiting.shift();
  if (!make) {
    document.body.dataset.ready = "yes";
    return;
  }
  make();
  setTimeout(next, 0);
})();
