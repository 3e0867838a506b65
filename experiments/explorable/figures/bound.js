"use strict";
// Step 4: the bound, its gap as an area, and when its estimates can be trusted.
function boundFigure() {
  const M = mathematics, stage = partOf("bound", "stage"), controls = partOf("bound", "controls");
  const values = M.float32(data.spectrum.values), vectors = M.float32(data.spectrum.vectors), mean = M.float32(data.spectrum.mean);
  const random = M.randomness(11), x = digits[0];
  const state = { beta: 4, sigma: 0.25, shift: 0, samples: 8, runs: 200 };

  function compute() {
    const variance = state.sigma ** 2;
    const params = M.waterFilled(values, vectors, 1, mean, 1, state.sigma);
    const p = M.linearPosterior(params, x), sharp = M.linearPosterior({ ...params, variance: state.beta * variance }, x);
    const sd = p.tril[0], q = { loc: sharp.loc.map((v) => v + state.shift * sd), tril: sharp.tril }; // the best at beta, moved
    const t = (q.loc[0] - p.loc[0]) / sd, c = q.tril[0] / sd, logP = M.linearLogMarginal(params, x);
    const estimates = [], sizes = [], elbos = [];
    for (let r = 0; r < state.runs; r++) {
      const logW = Array.from({ length: state.samples }, () => logP + M.integrand([t], c, [random.normal()]));
      estimates.push(M.logMeanExp(logW));
      elbos.push(logW[0]);
      sizes.push(M.effectiveSampleSize(logW));
    }
    Object.assign(state, { p, q, t, c, logP, estimates, elbos, sizes,
      gap: M.gapOf(t, c), iwaeGap: M.iwaeGap(t, c, state.samples) });
  }
  const window = () => { // where to look: z, and the log-densities of q and p there
    const { p, q } = state, reach = 4 * Math.max(p.tril[0], q.tril[0], Math.abs(p.loc[0] - q.loc[0]) / 3);
    const middle = (p.loc[0] + q.loc[0]) / 2, z = Array.from({ length: 241 }, (_, i) => middle + reach * (i / 120 - 1));
    const [logQ, logP] = [q, p].map((g) => z.map((v) => M.gaussianLogProb(g, [v])));
    return { range: [middle - reach, middle + reach], z, logQ, logP };
  };
  const curves = new Canvas(stage, { title: "q(z|x) beside the posterior p(z|x)", ratio: 0.62, label: "", paint(c) {
    const { range, z, logQ, logP } = window(), top = 1.15 * Math.exp(Math.max(...logQ, ...logP));
    c.axes({ x: range, y: [0, top], xLabel: "z", left: 34 });
    c.line(z.map((v, i) => [v, Math.exp(logP[i])]), colours.ink, { width: 2.5 });
    c.line(z.map((v, i) => [v, Math.exp(logQ[i])]), colours.blue, { width: 2.5 });
    c.write("p(z|x)", 42, 34, colours.ink, { bold: true });
    c.write("q(z|x)", 42, 52, colours.blue, { bold: true });
  } });
  const area = new Canvas(stage, { title: "the gap: the area under q log (q/p) − q + p", ratio: 0.62, label: "", paint(c) {
    const { range, z, logQ, logP } = window(), cost = z.map((_, i) => M.gapDensity(logQ[i], logP[i]));
    const top = Math.max(1.25 * Math.max(...cost), 0.2);
    c.axes({ x: range, y: [0, top], xLabel: "z", yLabel: "nats per unit of z", left: 34 });
    c.line([[range[0], 0], ...cost.map((v, i) => [z[i], v]), [range[1], 0]], colours.orange, { fill: true, alpha: 0.45 });
    c.line(cost.map((v, i) => [z[i], v]), colours.orange);
    c.write(`area = ${fixed(state.gap, 3)} nats`, 42, 36, colours.ink, { bold: true });
  } });
  const cloud = new Canvas(stage, { title: "each dot one estimate from K draws, the lines exact", ratio: 0.3, label: "", paint(c) {
    const sorted = [...state.estimates].sort((a, b) => a - b), least = sorted[Math.floor(sorted.length * 0.02)];
    const lo = Math.min(state.logP - state.gap, least) - 0.3, hi = Math.max(state.logP, sorted[sorted.length - 1]) + 0.3;
    const span = (hi - lo) * 0.06;
    c.axes({ x: [lo - span, hi + span], y: [0, 1], yTicks: [], xLabel: "nats", left: 8 });
    c.dots(state.estimates.map((v, i) => [v, 0.06 + 0.6 * ((i * 0.618034) % 1)]), colours.blue, { radius: 2.5, alpha: 0.55 });
    const marks = [["ELBO", state.logP - state.gap, colours.orange], ["IWAE", state.logP - state.iwaeGap, colours.blue], ["log p(x)", state.logP, colours.ink]];
    let last = -Infinity, height = 0;
    for (const [text, v, colour] of marks) {
      c.line([[v, 0], [v, 0.8]], colour, { width: 2.5 });
      const at = c.px(v);
      height = at - last < 62 ? height + 15 : 0;
      last = at;
      c.write(text, Math.min(Math.max(at, 30), c.width - 34), 34 + (height % 45), colour, { align: "center", bold: true });
    }
  } });
  cloud.panel.classList.add("wide");
  const table = numbers(partOf("bound", "numbers"), "The first digit, one latent, nats", ["estimate", "±\u00a0error", "exact"],
    ["ELBO: mean of log w", "IWAE: mean of log (1/K) Σ\u00a0w", "log p(x)", "gap of the ELBO", "gap of IWAE", "draws of K that count"]);
  const say = saying(partOf("bound", "numbers"));
  function refresh() {
    compute();
    const error = (a) => fixed(M.standardError(a), 3);
    const share = M.shareThatCounts(state.t, state.c);
    table.set([[fixed(M.mean(state.elbos), 3), error(state.elbos), fixed(state.logP - state.gap, 3)],
      [fixed(M.mean(state.estimates), 3), error(state.estimates), fixed(state.logP - state.iwaeGap, 3)],
      ["", "", fixed(state.logP, 3)], ["", "", fixed(state.gap, 3)], ["", "", fixed(state.iwaeGap, 4)],
      [fixed(M.mean(state.sizes), 1), error(state.sizes), `→ ${fixed(100 * share, 0)} %`]]);
    say(state.c <= Math.SQRT1_2
      ? "Do not trust it: q is too narrow (below 0.71 posterior sds), weights have no variance that is finite, and more draws help slowly."
      : share < 0.1 ? "Trust it with care: under a tenth of the draws count."
      : state.iwaeGap > 0.1 ? "The error you see does not hold the bias: raise K until IWAE stands still."
      : "Trust it: q is wide enough, and many of the draws count.");
    for (const c of [curves, area, cloud]) c.redraw();
  }
  const change = (name) => (v) => { state[name] = v; refresh(); };
  const width = slider(controls, { label: "β: q is the best one at this β", min: 0.1, max: 8, value: state.beta, log: true, oninput: change("beta") });
  slider(controls, { label: "q moved by so many posterior sds", min: -3, max: 3, step: 0.1, value: 0, format: (v) => fixed(v, 1), oninput: change("shift") });
  slider(controls, { label: "σ: noise of a pixel", min: 0.1, max: 0.6, step: 0.01, value: state.sigma, oninput: change("sigma") });
  slider(controls, { label: "K: draws in one estimate", min: 1, max: 1024, step: 1, log: true, value: state.samples, format: whole, oninput: change("samples") });
  slider(controls, { label: "estimates", min: 10, max: 1000, step: 10, value: state.runs, format: whole, oninput: change("runs") });
  for (const [text, beta] of [["q too narrow", 0.3], ["q the posterior", 1], ["q too wide", 4]])
    button(controls, text, () => { width.set(beta); change("beta")(beta); });
  refresh();
  curves.describe("Two curves over z: the exact posterior and q");
  area.describe("A curve over z whose filled area is the gap between the ELBO and log p(x)");
  cloud.describe("Estimates as dots on an axis of nats, with lines at the exact ELBO, IWAE and log p(x)");
}
