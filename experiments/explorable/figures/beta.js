"use strict";
// Step 7: beta buys a cheaper code with distortion; in the linear model it is a water level.
function betaFigure() {
  const M = mathematics, stage = partOf("beta", "stage"), controls = partOf("beta", "controls");
  const values = M.float32(data.spectrum.values), vectors = M.float32(data.spectrum.vectors), mean = M.float32(data.spectrum.mean);
  const k = 8, state = { beta: 1, sigma }, random = M.randomness(6);
  const eps = Array.from({ length: 8 }, () => random.normals(k));
  const nets = data.sweep.map((shipped) => M.unpacked(shipped, sigma)), tests = digits.slice(-8);
  const at = (beta) => M.rateDistortion(values, k, beta, state.sigma);
  const betas = M.array(121, (i) => 0.02 * 1000 ** (i / 120));

  const bars = new Canvas(stage, { title: "variance of each latent, and the water level βσ²", ratio: 0.75, label: "", paint(c) {
    c.axes({ x: [0.3, k + 1.7], y: [0.01, 1.2], logY: true, xTicks: [1, 2, 3, 4, 5, 6, 7, 8], xLabel: "latent", left: 40 });
    const water = state.beta * state.sigma ** 2;
    for (let j = 0; j < k; j++) {
      const edge = (y) => [[j + 0.68, y], [j + 1.32, y]], low = Math.min(Math.max(water, 0.01), values[j]);
      c.line([...edge(0.01), ...edge(values[j]).reverse()], colours.muted, { fill: true, alpha: 0.35 });
      if (values[j] > low) c.line([...edge(low), ...edge(values[j]).reverse()], colours.blue, { fill: true });
    }
    c.level(water, colours.red, { width: 2.5 });
    c.at("βσ²", k + 0.6, Math.min(Math.max(water, 0.011), 1) * 1.12, colours.red, { bold: true });
  } });
  const plane = new Canvas(stage, { title: "distortion against rate, nats", ratio: 0.75, label: "", paint(c) {
    const points = Array.from(betas, at), here = at(state.beta);
    const lo = Math.min(...points.map((p) => p.distortion)), hi = Math.max(...points.map((p) => p.distortion));
    const linked = Math.abs(state.sigma - sigma) < 1e-9;
    const low = Math.min(lo, linked ? -33 : lo) - 1, room = (hi - low) * 0.08;
    c.axes({ x: [0, linked ? 28 : Math.max(12, points[0].rate)], y: [low, hi + room], xLabel: "rate R", yLabel: "distortion D", left: 44 });
    c.line(points.map((p) => [p.rate, p.distortion]), colours.blue, { width: 2.5 });
    const tangent = [-30, 30].map((d) => [here.rate + d, here.distortion - state.beta * d]);
    c.line(tangent, colours.red, { dash: [6, 4], width: 1.6 });
    if (linked) {
      c.line(data.sweep.map((p) => [p.rate, p.distortion]), colours.green, { width: 2 });
      c.dots(data.sweep.map((p) => [p.rate, p.distortion]), colours.green, { radius: 3 });
      c.write("green: networks", c.width - 130, 54, colours.green, { bold: true });
    }
    c.dots([[here.rate, here.distortion]], colours.red, { radius: 6 });
    c.write("blue: linear", c.width - 130, 36, colours.blue, { bold: true });
  } });
  const nearest = () => nets.reduce((a, b) => (Math.abs(Math.log(b.beta / state.beta)) < Math.abs(Math.log(a.beta / state.beta)) ? b : a));
  const rows = strip(partOf("beta", "strips"), "Test digits rebuilt and new ones drawn, by the linear model and by the network of the nearest beta", () => {
    const model = M.waterFilled(values, vectors, k, mean, state.beta, state.sigma), net = nearest();
    return [
      ["test digits", tests],
      ["linear rebuilds", tests.map((x) => M.linearDecode(model, M.linearPosterior(model, x).loc))],
      [`network, β = ${net.beta}, rebuilds`, tests.map((x) => M.decode(net, M.encode(net, x).parts[0].loc))],
      ["linear invents", eps.map((z) => M.linearDecode(model, z))],
      [`network, β = ${net.beta}, invents`, eps.map((z) => M.decode(net, z))],
    ];
  }, 8);
  const table = numbers(partOf("beta", "numbers"), "Mean of an image, nats", ["linear, exact", "nearest network, test digits"],
    ["β", "rate R: price of the code", "distortion D: price of the image given it", "ELBO = −(D + R)", "latents in use"]);
  const say = saying(partOf("beta", "numbers"));
  function refresh() {
    const here = at(state.beta), net = nearest();
    table.set([[fixed(state.beta), String(net.beta)], [fixed(here.rate), fixed(net.rate)], [fixed(here.distortion), fixed(net.distortion)],
      [fixed(-here.rate - here.distortion), fixed(-net.rate - net.distortion)], [`${here.active} of ${k}`, ""]]);
    say(`At β = ${fixed(state.beta)} one more nat of code would save ${fixed(state.beta)} nats of distortion; ${here.active} of ${k} latents stand above the water.`);
    for (const c of [bars, plane, rows]) c.redraw();
  }
  const change = (v) => { state.beta = v; refresh(); };
  const price = slider(controls, { label: "β: price of a nat of code", min: 0.02, max: 20, value: 1, log: true, oninput: change });
  slider(controls, { label: "σ: noise of a pixel", min: 0.1, max: 0.5, step: 0.01, value: sigma, oninput: (v) => { state.sigma = v; refresh(); } });
  for (const beta of [0.25, 1, 4]) button(controls, `β = ${beta}`, () => { price.set(beta); change(beta); });
  refresh();
  bars.describe("Bars of the eight latents' variances on a logarithmic axis; the part above the water level is what the code carries");
  plane.describe("The curve of distortion against rate, with a tangent of slope minus beta at the chosen point");
}
