"use strict";
// A VAE with two latents, trained here: backpropagation and Adam are in mathematics.js.
function trainFigure() {
  const M = mathematics, stage = partOf("train", "stage"), controls = partOf("train", "controls");
  const BATCH = 64, HIDDEN = 64, all = digits.map((_, i) => i);
  const state = { beta: 1, rate: 0.003, seed: 0 };
  let run;
  function restart() {
    animate.stop();
    const random = M.randomness(++state.seed);
    const model = { sigma, latents: 2, posterior: "diagonal", priorDistribution: M.alone(M.standardNormal(2)),
      encoder: M.freshNetwork([64, HIDDEN, 4], random), decoder: M.freshNetwork([2, HIDDEN, 64], random) };
    run = { model, random, step: 0, curve: [], memory: { encoder: M.freshAdam(model.encoder), decoder: M.freshAdam(model.decoder) } };
    look();
  }
  function steps(count) {
    const { model, random, memory } = run;
    for (let i = 0; i < count; i++) {
      const xs = Array.from({ length: BATCH }, () => digits[Math.floor(random.uniform() * all.length)]);
      const slope = M.elboSlope(model, xs, xs.map(() => random.normals(2)), state.beta);
      for (const net of ["encoder", "decoder"]) M.adam(model[net], slope[net], memory[net], state.rate);
      run.step++;
      run.smooth = run.smooth === undefined ? [slope.rate, slope.distortion]
        : run.smooth.map((v, j) => 0.95 * v + 0.05 * [slope.rate, slope.distortion][j]);
      if (run.step % 5 === 0) run.curve.push([run.step, -(run.smooth[0] + run.smooth[1])]);
    }
  }
  const chart = new Canvas(stage, { title: "ELBO of the batches, nats", label: "", paint(c) {
    const steps = Math.max(200, run.step), values = run.curve.map((p) => p[1]).filter((v) => v > -60);
    c.axes({ x: [0, steps], y: [-60, Math.max(20, ...values)], xLabel: "steps of 64 images", left: 40 });
    c.line(run.curve, colours.blue, { width: 2.2 });
  } });
  const map = new Canvas(stage, { title: "means of q(z|x), by class", label: "", paint(c) {
    c.axes({ x: [-3.4, 3.4], y: [-3.4, 3.4], bare: true });
    c.gaussian(M.standardNormal(2), colours.muted, { width: 1.2 });
    c.dots(run.codes, (i) => ofClass(labels[i]), { radius: 2, alpha: CODES });
  } });
  const sheet = new Canvas(stage, { title: "what the plane decodes to", label: "", paint(c) {
    const n = 9, size = c.width / n;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++)
        c.digit(M.decode(run.model, [4 * (i / (n - 1)) - 2, 2 - 4 * (j / (n - 1))]), i * size, j * size, size);
  } });
  const table = numbers(partOf("train", "numbers"), "Smoothed over the last batches, nats", ["value"],
    ["steps, and passes through the digits", "rate R", "distortion D", "ELBO = −(D + R)"]);
  const say = saying(partOf("train", "numbers"));
  function look() {
    run.codes = digits.map((x) => M.encode(run.model, x).parts[0].loc);
    const [rate, distortion] = run.smooth || [NaN, NaN], show = (v) => (v === v ? fixed(v) : "—");
    table.set([[`${whole(run.step)}, ${fixed((run.step * BATCH) / all.length, 1)}`], [show(rate)], [show(distortion)], [show(-rate - distortion)]]);
    say(run.step ? `After ${whole(run.step)} steps the ELBO is ${show(-rate - distortion)} nats.` : "Untrained: the map is one heap, and every code decodes to noise.");
    for (const c of [chart, map, sheet]) c.redraw();
  }
  let frames = 0;
  const animate = animation(controls, ["Train", "Pause"], () => {
    const start = performance.now();
    do steps(1); while (performance.now() - start < 24);
    if (++frames % 4 === 0) look();
    return run.step < 6000;
  });
  button(controls, "Start again", restart);
  slider(controls, { label: "β", min: 0.1, max: 10, value: 1, log: true, oninput: (v) => { state.beta = v; } });
  slider(controls, { label: "learning rate", min: 0.0003, max: 0.03, value: 0.003, log: true, format: (v) => v.toFixed(4), oninput: (v) => { state.rate = v; } });
  restart();
  chart.describe("The ELBO of the batches against steps");
  map.describe("The means of q of all digits, coloured by class, with one and two standard deviations of the prior");
  sheet.describe("A nine by nine grid of codes between minus two and two, decoded");
}
