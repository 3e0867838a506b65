"use strict";
// Step 6: what a diagonal q loses when the latents are turned.
function covarianceFigure() {
  const M = mathematics, stage = partOf("covariance", "stage"), controls = partOf("covariance", "controls");
  const state = { angle: 45, second: 8 }, x = digits[0], straight = linearModel(8);
  let fit;
  function compute() {
    const params = M.turned(straight, [0, state.second - 1], (state.angle * Math.PI) / 180), p = M.linearPosterior(params, x);
    const precision = M.inverse(p.tril, 2);
    Object.assign(state, { p, precision, loss: M.diagonalLoss(precision, 2),
      logP: M.linearLogMarginal(params, x) });
  }
  function restart() { // both start from the same Gaussian
    fit = { step: 0, q: {}, gaps: {} };
    for (const kind of ["diagonal", "full"]) {
      fit.q[kind] = M.diagonal(new Float64Array(2), [Math.exp(-0.5), Math.exp(-0.5)]);
      fit.gaps[kind] = [];
    }
  }
  function learn() {
    const rate = 0.4 / Math.max(state.precision[0], state.precision[3]);
    for (const kind of ["diagonal", "full"]) {
      fit.gaps[kind].push(M.klOfGaussians(fit.q[kind], state.p));
      fit.q[kind] = M.klStep(fit.q[kind], state.p, rate, kind === "full");
    }
    return ++fit.step < 240;
  }
  const map = new Canvas(stage, { title: "p(z|x) and the two fits, 1 and 2 sd", label: "", ratio: 0.9, paint(c) {
    const far = 2.6 * Math.max(...[0, 1].map((i) => Math.hypot(state.p.tril[2 * i], state.p.tril[2 * i + 1])));
    const [u, v] = state.p.loc;
    c.axes({ x: [u - far, u + far], y: [v - far * 0.9, v + far * 0.9], xLabel: "z₁", yLabel: "z₂", left: 40 });
    c.gaussian(state.p, colours.ink, { width: 5, alpha: 0.35 });
    c.gaussian(fit.q.full, colours.blue, { dash: [6, 4] });
    c.gaussian(fit.q.diagonal, colours.red);
    c.write("posterior", 48, 34, colours.ink, { bold: true });
    c.write("diagonal q", 48, 52, colours.red, { bold: true });
    c.write("full q", 48, 70, colours.blue, { bold: true });
  } });
  const chart = new Canvas(stage, { title: "the gap while both learn, nats", label: "", ratio: 0.9, paint(c) {
    c.axes({ x: [0, 240], y: [1e-3, 100], logY: true, xLabel: "steps of gradient ascent" });
    c.level(Math.max(state.loss, 1e-3), colours.ink, { dash: [6, 4] });
    for (const [kind, colour] of [["full", "blue"], ["diagonal", "red"]])
      c.line(fit.gaps[kind].map((v, i) => [i, Math.max(v, 1e-3)]), colours[colour], { width: 2.5 });
    c.at(`formula: ${fixed(state.loss, 3)}`, 90, Math.max(state.loss * 1.5, 2e-3), colours.ink);
  } });
  const table = numbers(partOf("covariance", "numbers"), "The turned model, nats", ["value"],
    ["log p(x): the turn leaves it", "gap of the diagonal q now", "½ [Σ log Pᵢᵢ − log |P|]", "gap of the full q now", "correlation in the posterior"]);
  const say = saying(partOf("covariance", "numbers"));
  function refresh() {
    table.set([[fixed(state.logP, 4)], [fixed(M.klOfGaussians(fit.q.diagonal, state.p), 4)], [fixed(state.loss, 4)],
      [fixed(M.klOfGaussians(fit.q.full, state.p), 4)], [fixed(M.correlation(state.p))]]);
    say(`Turned by ${Math.round(state.angle)} degrees, the best diagonal q loses ${fixed(state.loss, 3)} nats, a full one none.`);
    for (const c of [map, chart]) c.redraw();
  }
  const animate = animation(controls, ["Learn both", "Pause"], () => { const more = learn(); refresh(); return more; });
  const settle = () => { compute(); restart(); while (learn()); refresh(); };
  button(controls, "Start again", () => { animate.stop(); restart(); refresh(); animate.start(); });
  slider(controls, { label: "turn of the latents, degrees", min: 0, max: 90, step: 1, value: 45, format: (v) => String(Math.round(v)),
    oninput: (v) => { state.angle = v; animate.stop(); settle(); } });
  choice(controls, "latents", [[8, "the first and the eighth"], [4, "the first and the fourth"], [2, "the first and the second"]],
    (v) => { state.second = Number(v); animate.stop(); settle(); });
  settle();
  map.describe("Ellipses of the posterior, of the diagonal q, which cannot tilt, and of the full q, which lies on the posterior");
  chart.describe("The gap of both fits against steps, on a logarithmic axis, with the formula as a dashed line");
}
