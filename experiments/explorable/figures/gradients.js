"use strict";
// Step 5: two unbiased gradients of the ELBO, draw by draw.
function gradientsFigure() {
  const M = mathematics, stage = partOf("gradients", "stage"), controls = partOf("gradients", "controls");
  const KINDS = { pathwise: "reparameterization", score: "score function" };
  const state = { latents: 2, width: 1, baseline: true };
  let run;
  const baselineAt = (t) => (state.baseline ? M.expectedIntegrand(t, state.width) : -29.55); // log p(x) taken off
  function restart() {
    animate.stop();
    const t = M.array(state.latents, () => 1); // the mean of q is one posterior sd off along every axis
    run = { t, baseline: baselineAt(t), random: M.randomness(2), n: 0 };
    for (const kind in KINDS) run[kind] = { draws: [], sum: new Float64Array(state.latents), squares: 0, path: [] };
    run.walk = { pathwise: [[2.2, 1.4]], score: [[2.2, 1.4]] };
    draw(30);
    refresh();
  }
  function draw(count) {
    for (let i = 0; i < count; i++) {
      const eps = run.random.normals(state.latents);
      run.n++;
      for (const kind in KINDS) {
        const g = kind === "pathwise" ? M.pathwiseGradient(run.t, state.width, eps)
          : M.scoreGradient(run.t, state.width, eps, run.baseline);
        const mine = run[kind];
        mine.draws.push([g[0], g[g.length > 1 ? 1 : 0]]);
        if (mine.draws.length > 1500) mine.draws.shift();
        for (let j = 0; j < g.length; j++) mine.sum[j] += g[j];
        mine.squares += M.squaredDistance(g, run.t.map((v) => -v)); // from the exact gradient
        if (run.n < 40 || Math.log10(run.n) * 80 >= mine.path.length) mine.path.push([run.n, mine.sum[0] / run.n]);
      }
    }
    if (state.latents > 1 && run.walk.score.length < 400) { // climb: 2 latents, a step of 0.05
      const eps = run.random.normals(2);
      for (const kind in KINDS) {
        const path = run.walk[kind], at = path[path.length - 1];
        const g = kind === "pathwise" ? M.pathwiseGradient(at, state.width, eps)
          : M.scoreGradient(at, state.width, eps, baselineAt(at));
        path.push(at.map((v, j) => Math.min(Math.max(v + 0.05 * g[j], -9), 9)));
      }
    }
  }
  const cloud = (kind, colour) => {
    const canvas = new Canvas(stage, { title: `${KINDS[kind]}: each dot a gradient`, ratio: 0.85, label: "", paint(c) {
      const spread = Math.min(60, Math.max(6, 2.2 * Math.sqrt(M.scoreVariance(run.t, state.width, run.baseline) / state.latents)));
      c.axes({ x: [-1 - spread, -1 + spread], y: [-1 - spread, -1 + spread], xLabel: "in the first latent", left: 34 });
      const { draws } = run[kind];
      c.dots(draws, colours[colour], { radius: 2.2, alpha: 0.4 });
      const [u, v] = draws[draws.length - 1];
      c.arrow([0, 0], [u, v], colours[colour], 1.5);
      c.arrow([0, 0], [-1, -1], colours.ink, 3);
      c.write("thick arrow: exact", 42, c.height - 46, colours.ink);
    } });
    return canvas;
  };
  const left = cloud("pathwise", "blue"), right = cloud("score", "red");
  const mean = new Canvas(stage, { title: "mean of the draws so far, first latent", ratio: 0.5, label: "", paint(c) {
    c.axes({ x: [1, 10000], y: [-4, 2], logX: true, xLabel: "draws", left: 34 });
    c.level(-1, colours.ink, { dash: [6, 4] });
    for (const [kind, colour] of [["score", "red"], ["pathwise", "blue"]])
      c.line([...run[kind].path, [run.n, run[kind].sum[0] / run.n]], colours[colour], { width: 2.2 });
    c.write("exact: −1", 42, 34, colours.ink);
  } });
  const climb = new Canvas(stage, { title: "climbing the ELBO with each, one draw a step", ratio: 0.5, label: "", paint(c) {
    c.axes({ x: [-4, 4], y: [-2, 2], xLabel: "mean of q, posterior sds", left: 34 });
    if (state.latents < 2) {
      c.write("two latents or more", 42, 40, colours.muted);
      return;
    }
    c.gaussian(M.standardNormal(2), colours.muted, { radii: [0.5, 1, 1.5, 2], width: 1 });
    for (const [kind, colour] of [["score", "red"], ["pathwise", "blue"]]) {
      const path = run.walk[kind];
      c.line(path, colours[colour], { width: 1.6 });
      c.dots([path[path.length - 1]], colours[colour], { radius: 5 });
    }
  } });
  const table = numbers(partOf("gradients", "numbers"), "Variance of one draw, all latents together", ["measured", "exact"],
    ["reparameterization", "score function", "score draws that match one of the other"]);
  const say = saying(partOf("gradients", "numbers"));
  function refresh() {
    const exact = [M.pathwiseVariance(run.t, state.width), M.scoreVariance(run.t, state.width, run.baseline)];
    const measured = Object.keys(KINDS).map((kind) => run[kind].squares / run.n);
    const show = (v) => (v < 100 ? fixed(v, 2) : whole(v));
    table.set([[show(measured[0]), show(exact[0])], [show(measured[1]), show(exact[1])],
      [show(measured[1] / measured[0]), show(exact[1] / exact[0])]]);
    say(`After ${whole(run.n)} draws: one reparameterized draw is worth ${show(exact[1] / exact[0])} of the score function.`);
    for (const c of [left, right, mean, climb]) c.redraw();
  }
  const animate = animation(controls, ["Draw gradients", "Pause"], () => {
    draw(run.n < 60 ? 1 : run.n < 400 ? 5 : 50);
    refresh();
    return run.n < 10000;
  });
  button(controls, "One draw", () => { draw(1); refresh(); });
  choice(controls, "latents k", [2, 8, 32, 1].map((k) => [k, String(k)]), (v) => { state.latents = Number(v); restart(); });
  slider(controls, { label: "sd of q, in posterior sds", min: 0.05, max: 2, step: 0.05, value: 1, oninput: (v) => { state.width = v; restart(); } });
  choice(controls, "baseline b", [["yes", "E log w"], ["no", "0"]], (v) => { state.baseline = v === "yes"; restart(); });
  restart();
  left.describe("Gradients by reparameterization as dots around the exact gradient");
  right.describe("Gradients by the score function as dots around the exact gradient, far more spread");
  mean.describe("Running means of both estimates of the gradient, against the exact value");
  climb.describe("Two paths of the mean of q, each following one kind of gradient towards the posterior's mean");
}
