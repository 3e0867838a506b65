"use strict";
// Swap the prior, the posterior and the bound: eighteen models trained by jaxvae.
function menuFigure() {
  const M = mathematics, stage = partOf("menu", "stage"), controls = partOf("menu", "controls");
  const state = { prior: "normal", posterior: "diagonal", bound: "elbo", index: digits.length - 12 }, random = M.randomness(9);
  const eps = Array.from({ length: 200 }, () => M.randomness(Math.floor(random.uniform() * 2 ** 31)));
  const made = new Map();
  let model;
  function choose() {
    const key = [state.prior, state.posterior, state.bound].join();
    if (!made.has(key)) {
      const shipped = data.menu.find((m) => [m.prior, m.posterior, m.bound].join() === key);
      const fresh = M.unpacked(shipped, sigma), grid = M.gridOf(fresh, 120, shipped.extent), draws = M.randomness(8);
      const codes = digits.map((x) => M.sample(M.encode(fresh, x), draws));
      made.set(key, { ...fresh, grid, codes });
    }
    model = made.get(key);
    look();
  }
  function look() {
    const x = digits[state.index], q = M.encode(model, x), found = M.onGrid(model, model.grid, x);
    const zs = eps.map((_, i) => M.sample(q, M.randomness(100 + i)));
    const w = zs.map((z) => M.logWeight(model, q, x, z));
    Object.assign(state, { x, q, found, zs, prior_images: Array.from({ length: 10 }, (_, i) => M.decode(model, M.sample(model.priorDistribution, M.randomness(i)))) });
    table.set([
      [fixed(M.mean(w)), fixed(model.elbo)],
      [fixed(M.mean(Array.from({ length: 25 }, (_, i) => M.logMeanExp(w.slice(8 * i, 8 * i + 8))))), fixed(model.iwae)],
      [fixed(found.logP), fixed(model.log_p)],
      [fixed(found.logP - M.mean(w)), `${fixed(model.gap)} ± ${fixed(model.gap_error)}`]]);
    say(`This model gives unseen digits ${fixed(model.log_p)} nats on average, and its encoder misses ${fixed(model.gap)} of them.`);
    for (const c of [map, near, rows]) c.redraw();
  }
  const map = new Canvas(stage, { title: "the prior (grey) and codes", label: "", paint(c) {
    const r = model.extent, top = Math.max(...model.grid.prior);
    c.axes({ x: [-r, r], y: [-r, r], bare: true });
    c.heat(model.grid.prior.map((v) => Math.exp((v - top) / 2)), model.grid.m, colours.muted, { strength: 0.6 });
    c.dots(model.codes, (i) => ofClass(labels[i]), { radius: 1.7, alpha: CODES });
    c.handle(state.q.parts[0].loc, colours.red);
  } });
  const near = new Canvas(stage, { title: "p(z|x) (grey) and q(z|x) near the ring", label: "", paint(c) {
    const centre = [0, 1].map((j) => M.sum(state.q.parts.map((p, i) => Math.exp(state.q.logWeights[i]) * p.loc[j])));
    const best = model.grid.z[state.found.density.indexOf(Math.max(...state.found.density))];
    const far = Math.max(...[0, 1].map((j) => Math.abs(best[j] - centre[j]) / 2)) + 0.4;
    const grid = M.gridOf(model, 70, far, [0, 1].map((j) => (best[j] + centre[j]) / 2));
    const { density } = M.onGrid(model, grid, state.x), top = Math.max(...density);
    c.axes({ x: [grid.centre[0] - far, grid.centre[0] + far], y: [grid.centre[1] - far, grid.centre[1] + far], bare: true });
    c.heat(density.map((v) => Math.exp((v - top) / 2)), 70, colours.ink);
    state.q.parts.forEach((p, i) => c.gaussian(p, colours.blue, { alpha: 0.25 + 0.75 * Math.exp(state.q.logWeights[i]) }));
    c.dots(state.zs.slice(0, 60), colours.blue, { radius: 1.8, alpha: 0.6 });
  } });
  const rows = strip(partOf("menu", "strips"), "The image, draws of its posterior decoded, and draws of the prior decoded", () => [
    ["x, and draws of q decoded", [state.x, ...state.zs.slice(0, 9).map((z) => M.decode(model, z))], (j) => (j ? null : colours.red)],
    ["draws of the prior, decoded", state.prior_images],
  ]);
  const table = numbers(partOf("menu", "numbers"), "In nats", ["this digit", "300 unseen digits"],
    ["ELBO", "IWAE of 8 draws", "log p(x), summed over a grid", "gap: log p(x) − ELBO"]);
  const say = saying(partOf("menu", "numbers"));
  const swap = (name) => (v) => { state[name] = v; choose(); };
  choice(controls, "prior", [["normal", "N(0, I)"], ["mixture", "mixture of ten Gaussians"], ["vamp", "VampPrior of ten"]], swap("prior"));
  choice(controls, "posterior", [["diagonal", "diagonal Gaussian"], ["full", "full covariance"], ["mixture", "mixture of three"]], swap("posterior"));
  choice(controls, "trained on", [["elbo", "the ELBO"], ["iwae", "IWAE of 8 draws"]], swap("bound"));
  button(controls, "Another digit", () => {
    state.index = numTrain + ((state.index - numTrain + 37) % (digits.length - numTrain));
    look();
  });
  choose();
  map.describe("The prior's density in grey, and a drawn code of each digit, coloured by its class");
  near.describe("The exact posterior of one image in grey, with q as ellipses and draws of it as dots");
}
