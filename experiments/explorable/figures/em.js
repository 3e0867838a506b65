"use strict";
// Step 3: EM climbs to the optimum of the linear model.
function emFigure() {
  const M = mathematics, stage = partOf("em", "stage"), controls = partOf("em", "controls"), k = 8;
  const best = linearModel(k), height = (params) => M.mean(digits.map((x) => M.linearLogMarginal(params, x)));
  const optimum = height(best), random = M.randomness(3);
  let state;
  function restart() {
    animate.stop();
    const params = { weight: random.normals(64 * k), mean: best.mean, variance: 1 };
    state = { params, path: [height(params)] };
    refresh();
  }
  function step() {
    state.params = M.emStep(state.params, digits);
    state.path.push(height(state.params));
    refresh();
    return optimum - state.path[state.path.length - 1] > 1e-3;
  }
  const chart = new Canvas(stage, { title: "nats short of the optimum", ratio: 0.6, label: "", paint(c) {
    const count = Math.max(40, state.path.length + 4);
    c.axes({ x: [-0.02 * count, count], y: [5e-4, 200], logY: true, xLabel: "steps of EM" });
    c.line(state.path.map((v, i) => [i, Math.max(optimum - v, 1e-4)]), colours.blue, { width: 2.5 });
    c.dots(state.path.map((v, i) => [i, Math.max(optimum - v, 1e-4)]), colours.blue, { radius: 3 });
  } });
  const columns = new Canvas(stage, { title: "the columns of W: what each latent adds to an image", ratio: 0.5, label: "The eight columns of W as images", paint(c) {
    const size = Math.min(c.width / 4, c.height / 2) - 6;
    for (let j = 0; j < k; j++) {
      const w = M.array(64, (i) => state.params.weight[i * k + j]), top = Math.max(...w.map(Math.abs));
      c.digit(w.map((v) => 0.5 + v / (2 * top)), (j % 4) * (size + 6), Math.floor(j / 4) * (size + 6), size);
    }
  } });
  const table = numbers(partOf("em", "numbers"), "Mean of all 1,797 digits, nats", ["value"],
    ["steps", "log p(x) now", "log p(x) at the optimum, closed form", "noise s² now"]);
  const say = saying(partOf("em", "numbers"));
  function refresh() {
    const now = state.path[state.path.length - 1];
    table.set([[String(state.path.length - 1)], [fixed(now, 4)], [fixed(optimum, 4)], [fixed(state.params.variance, 4)]]);
    say(`After ${state.path.length - 1} steps EM is ${fixed(optimum - now, 3)} nats short of the optimum.`);
    for (const c of [chart, columns]) c.redraw();
  }
  const animate = animation(controls, ["Run EM", "Pause"], step);
  button(controls, "One step", step);
  button(controls, "Another start", restart);
  restart();
  chart.describe("How short of the optimum the log-likelihood is after each step, on a logarithmic axis");
}
