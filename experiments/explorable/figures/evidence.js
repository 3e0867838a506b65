"use strict";
// Step 2: a hundred thousand draws of the prior, of which six count.
function evidenceFigure() {
  const M = mathematics, stage = partOf("evidence", "stage"), controls = partOf("evidence", "controls");
  const k = 8, model = linearModel(k);
  const WIDTHS = { prior: null, wide: 1.5, narrow: 0.6, exact: 1 }, most = 100000;
  const state = { from: "prior", index: digits.length - 300 };
  let run;

  function restart() {
    animate.stop();
    const x = digits[state.index], posterior = M.linearPosterior(model, x), c = WIDTHS[state.from];
    const q = c ? { loc: posterior.loc, tril: posterior.tril.map((v) => v * c) } : M.standardNormal(k);
    run = { x, posterior, q, exact: M.linearLogMarginal(model, x), random: M.randomness(state.seed = (state.seed || 16) + 1),
      n: 0, logW: [], path: [], cloud: [], best: [] };
    draw(state.from === "exact" ? 1 : 100);
    refresh();
  }
  function draw(count) {
    for (let i = 0; i < count; i++) {
      const eps = run.random.normals(k), z = M.gaussianSample(run.q, eps);
      const prior = M.gaussianLogProb(M.standardNormal(k), z);
      const w = M.pixelsLogProb(run.x, M.linearDecode(model, z), Math.sqrt(model.variance))
        + (WIDTHS[state.from] ? prior - M.gaussianLogProb(run.q, z) : 0);
      run.n++;
      run.logW.push(w);
      if (run.cloud.length < 2500) run.cloud.push([z[0], z[1]]);
      if (run.best.length < 10 || w > run.best[run.best.length - 1].w)
        run.best = [...run.best, { z, w }].sort((a, b) => b.w - a.w).slice(0, 10);
      if (run.n < 20 || Math.log10(run.n) * 60 >= run.path.length) run.path.push([run.n, value()]);
    }
  }
  const value = () => M.logMeanExp(run.logW);
  const chart = new Canvas(stage, { title: "the estimate of log p(x), nats", ratio: 0.72, label: "", paint(c) {
    c.axes({ x: [1, most], y: [run.exact - 40, run.exact + 6], logX: true, xLabel: "draws N", left: 40 });
    c.level(run.exact, colours.ink, { dash: [6, 4] });
    c.line([...run.path, [run.n, value()]], state.from === "prior" ? colours.red : colours.blue, { width: 2.5 });
    c.at("log p(x), exact", 1.3, run.exact + 2.2, colours.ink);
    c.dots([[run.n, value()]], colours.ink, { radius: 4 });
  } });
  const cloud = new Canvas(stage, { title: "the draws, two latents of eight", ratio: 0.72, label: "", paint(c) {
    c.axes({ x: [-4.2, 4.2], y: [-3.4, 4.4], xTicks: [-4, -2, 0, 2, 4], xLabel: "z₁", yLabel: "z₂", left: 30 });
    c.dots(run.cloud, colours.muted, { radius: 1.4, alpha: 0.5 });
    const t = run.posterior.tril;
    c.gaussian({ loc: run.posterior.loc, tril: [t[0], 0, t[k], t[k + 1]] }, colours.blue, { width: 2 });
    const top = run.best[0].w;
    c.dots(run.best.map(({ z }) => [z[0], z[1]]), colours.red,
      { radius: (i) => 2 + 9 * Math.exp((run.best[i].w - top) / 2), alpha: 0.75 });
    c.write("blue: p(z|x), 1 and 2 sd", 38, 34, colours.blue);
    c.write("red: the ten heaviest draws", 38, 52, colours.red);
  } });
  const rows = strip(partOf("evidence", "strips"), "The image and what the heaviest draws decode to", () => [
    ["x, and its posterior mean", [run.x, M.linearDecode(model, run.posterior.loc)]],
    ["the ten heaviest draws", run.best.map(({ z }) => M.linearDecode(model, z))],
  ]);
  const table = numbers(partOf("evidence", "numbers"), "After so many draws", ["value"],
    ["draws N", "estimate of log p(x)", "log p(x), exact", "draws that count: (Σw)² / Σw²", "share of the heaviest draw"]);
  const say = saying(partOf("evidence", "numbers"));
  function refresh() {
    const count = M.effectiveSampleSize(run.logW);
    table.set([[whole(run.n)], [fixed(value())], [fixed(run.exact)], [count < 100 ? fixed(count, 1) : whole(count)],
      [`${fixed(100 * Math.exp(run.best[0].w - M.logSumExp(run.logW)), 1)} %`]]);
    say(`Of ${whole(run.n)} draws, ${count < 100 ? fixed(count, 1) : whole(count)} count. ${
      state.from === "narrow" ? "The estimate is short, and its weights do not tell by how much: what q leaves out is hardly ever drawn."
      : state.from === "exact" ? "Every weight is p(x) itself, so one draw is enough." : ""}`);
    for (const c of [chart, cloud, rows]) c.redraw();
  }
  const animate = animation(controls, ["Draw 100,000", "Pause"], () => {
    draw(Math.min(Math.max(4, Math.floor(run.n / 25)), 1500, most - run.n));
    refresh();
    return run.n < most;
  });
  button(controls, "Again", () => { restart(); animate.start(); });
  choice(controls, "draw z from", [
    ["prior", "the prior p(z)"], ["wide", "the posterior, 1.5 times as wide"],
    ["narrow", "the posterior, 0.6 times as wide"], ["exact", "the posterior itself"],
  ], (v) => { state.from = v; restart(); animate.start(); });
  button(controls, "Another digit", () => { state.index = (state.index + 7) % digits.length; restart(); });
  state.index = 0;
  restart();
  chart.describe("Running estimate of log p(x) against the number of draws, on a logarithmic axis, with the exact value as a dashed line");
  cloud.describe("Draws in the plane of the first two latents, the ten heaviest in red, the posterior as two blue ellipses");
}
// probabilistic PCA of the digits at its optimum, W = U (L - s2)^1/2
function linearModel(k) {
  const values = mathematics.float32(data.spectrum.values), vectors = mathematics.float32(data.spectrum.vectors);
  const variance = mathematics.mean(values.slice(k));
  return mathematics.waterFilled(values, vectors, k, mathematics.float32(data.spectrum.mean), 1, Math.sqrt(variance));
}
