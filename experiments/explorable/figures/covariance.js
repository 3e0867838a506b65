"use strict";
// Step 6: what a diagonal q loses when the latents are turned.
function covarianceFigure() {
  const M = mathematics, stage = partOf("covariance", "stage"), controls = partOf("covariance", "controls");
  const values = M.float32(data.spectrum.values), vectors = M.float32(data.spectrum.vectors), mean = M.float32(data.spectrum.mean);
  const state = { angle: 45, second: 8 }, x = digits[0];
  let fit;
  function compute() {
    const [a, b] = [0, state.second - 1], variance = M.mean(values.slice(8)), turn = (state.angle * Math.PI) / 180;
    const straight = (i, j) => vectors[i * 8 + (j ? b : a)] * Math.sqrt(values[j ? b : a] - variance);
    const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
    const weight = M.array(128, (n) => { // W U
      const i = n >> 1;
      return n % 2 ? -sin * straight(i, 0) + cos * straight(i, 1) : cos * straight(i, 0) + sin * straight(i, 1);
    });
    const params = { weight, mean, variance }, p = M.linearPosterior(params, x);
    const precision = M.inverse(p.tril, 2), best = M.diagonal(p.loc, [0, 3].map((i) => precision[i] ** -0.5));
    Object.assign(state, { params, p, precision, best, loss: M.diagonalLoss(precision, 2),
      logP: M.linearLogMarginal(params, x) });
  }
  // gradient ascent from the prior, on the mean, log-scales and (if full) the off-diagonal number
  function restart() {
    fit = {};
    for (const kind of ["diagonal", "full"]) fit[kind] = { loc: Float64Array.of(0, 0), log: [-0.5, -0.5], off: 0, path: [] };
    fit.step = 0;
  }
  const gaussian = ({ loc, log, off }) => ({ loc, tril: Float64Array.of(Math.exp(log[0]), 0, off, Math.exp(log[1])) });
  function learn() {
    for (const kind of ["diagonal", "full"]) {
      const q = fit[kind], P = state.precision, d = [0, 1].map((i) => q.loc[i] - state.p.loc[i]);
      const [l0, off, l1] = [Math.exp(q.log[0]), q.off, Math.exp(q.log[1])], rate = 0.4 / Math.max(P[0], P[3]);
      q.path.push(M.klOfGaussians(gaussian(q), state.p));
      const [g0, g1] = [P[0] * d[0] + P[1] * d[1], P[2] * d[0] + P[3] * d[1]];
      q.loc = q.loc.map((v, i) => v - rate * [g0, g1][i]);
      // d KL / dL = P L - diag(1 / L)
      const slope = [P[0] * l0 + P[1] * off - 1 / l0, P[2] * l0 + P[3] * off, P[3] * l1 - 1 / l1];
      q.log = [Math.log(Math.max(l0 - rate * slope[0], 0.2 * l0)), Math.log(Math.max(l1 - rate * slope[2], 0.2 * l1))];
      if (kind === "full") q.off -= rate * slope[1];
    }
    fit.step++;
    return fit.step < 240;
  }
  const map = new Canvas(stage, { title: "p(z|x) and the two fits, 1 and 2 sd", label: "", ratio: 0.9, paint(c) {
    const far = 2.6 * Math.max(...[0, 1].map((i) => Math.hypot(state.p.tril[2 * i], state.p.tril[2 * i + 1])));
    const [u, v] = state.p.loc;
    c.axes({ x: [u - far, u + far], y: [v - far * 0.9, v + far * 0.9], xLabel: "z₁", yLabel: "z₂", left: 40 });
    c.gaussian(state.p, colours.ink, { width: 5, alpha: 0.35 });
    c.gaussian(gaussian(fit.full), colours.blue, { dash: [6, 4] });
    c.gaussian(gaussian(fit.diagonal), colours.red);
    c.write("posterior", 48, 34, colours.ink, { bold: true });
    c.write("diagonal q", 48, 52, colours.red, { bold: true });
    c.write("full q", 48, 70, colours.blue, { bold: true });
  } });
  const chart = new Canvas(stage, { title: "the gap while both learn, nats", label: "", ratio: 0.9, paint(c) {
    c.axes({ x: [0, 240], y: [1e-3, 100], logY: true, xLabel: "steps of gradient ascent" });
    c.level(Math.max(state.loss, 1e-3), colours.ink, { dash: [6, 4] });
    for (const [kind, colour] of [["full", "blue"], ["diagonal", "red"]])
      c.line(fit[kind].path.map((v, i) => [i, Math.max(v, 1e-3)]), colours[colour], { width: 2.5 });
    c.at(`formula: ${fixed(state.loss, 3)}`, 90, Math.max(state.loss * 1.5, 2e-3), colours.ink);
  } });
  const table = numbers(partOf("covariance", "numbers"), "The turned model, nats", ["value"],
    ["log p(x): the turn leaves it", "gap of the diagonal q now", "½ [Σ log Pᵢᵢ − log |P|]", "gap of the full q now", "correlation in the posterior"]);
  const say = saying(partOf("covariance", "numbers"));
  function refresh() {
    const correlation = state.p.tril[2] / Math.hypot(state.p.tril[2], state.p.tril[3]);
    table.set([[fixed(state.logP, 4)], [fixed(M.klOfGaussians(gaussian(fit.diagonal), state.p), 4)], [fixed(state.loss, 4)],
      [fixed(M.klOfGaussians(gaussian(fit.full), state.p), 4)], [fixed(correlation)]]);
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
