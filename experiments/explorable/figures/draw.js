"use strict";
// The first figure: draw a digit, and see q(z|x), p(z|x) and p(x|z).
function drawFigure() {
  const M = mathematics, stage = partOf("draw", "stage"), controls = partOf("draw", "controls");
  const shipped = data.menu.find((m) => m.prior === "normal" && m.posterior === "diagonal" && m.bound === "elbo");
  const model = M.unpacked(shipped, sigma), wide = M.gridOf(model, 160, shipped.extent);
  const codes = digits.map((x) => M.encode(model, x).parts[0].loc), random = M.randomness(1);
  const eps = Array.from({ length: 400 }, () => random.normals(2)); // the same for all: no flicker
  const state = { x: Float64Array.from(digits[numTrain]), cursor: [3, 3], z: [0, 0], zoom: false };

  const pad = new Canvas(stage, { title: "x: draw here", label: "", paint(c) {
    c.axes({ x: [0, 8], y: [0, 8], bare: true });
    c.digit(state.x, 0, 0, c.width);
    for (let i = 1; i < 8; i++) {
      c.segment([(i * c.width) / 8, 0], [(i * c.width) / 8, c.height], colours.line, 0.5);
      c.segment([0, (i * c.width) / 8], [c.width, (i * c.width) / 8], colours.line, 0.5);
    }
    if (document.activeElement === c.element) {
      c.g.strokeStyle = colours.red;
      c.g.lineWidth = 3;
      c.g.strokeRect((state.cursor[0] * c.width) / 8 + 2, (state.cursor[1] * c.width) / 8 + 2, c.width / 8 - 4, c.width / 8 - 4);
    }
  } });
  pad.panel.classList.add("small");
  const map = new Canvas(stage, { title: "z: drag the ring", label: "", paint(c) {
    const view = state.zoom ? state.near : { halfWidth: shipped.extent, centre: [0, 0] };
    c.axes({
      x: [view.centre[0] - view.halfWidth, view.centre[0] + view.halfWidth],
      y: [view.centre[1] - view.halfWidth, view.centre[1] + view.halfWidth], bare: true,
    });
    c.dots(codes, (i) => ofClass(labels[i]), { radius: state.zoom ? 4 : 1.8, alpha: CODES });
    const grid = state.zoom ? state.near : wide, density = state.zoom ? state.nearDensity : state.density;
    const top = Math.max(...density.filter((v) => v === v));
    c.heat(density.map((v) => Math.exp((v - top) / 2)), grid.m, colours.ink);
    for (const part of state.q.parts) c.gaussian(part, colours.blue);
    c.dots(state.samples, colours.blue, { radius: 3.5 });
    if (!state.zoom) for (const { label, at } of centres) c.at(String(label), at[0], at[1], ofClass(label), { size: 19, bold: true, align: "center" });
    c.handle(state.z, colours.red);
  } });
  const image = new Canvas(stage, { title: "p(x|z) at the ring", label: "The image that the decoder makes of the code at the ring", paint(c) {
    c.digit(M.decode(model, state.z), 0, 0, c.width, { frame: colours.red });
  } });
  image.panel.classList.add("small");
  const rows = strip(partOf("draw", "strips"), "Eight draws of q(z|x), decoded", () =>
    [["draws of q, decoded", state.samples.map((z) => M.decode(model, z))]], 8);
  const table = numbers(partOf("draw", "numbers"), "This image, in nats", ["value"],
    ["log p(x), summed over the grid", "ELBO, 400 draws of q", "gap = KL(q(z|x) ‖ p(z|x))"]);
  const say = saying(partOf("draw", "numbers"));
  const centres = Array.from({ length: 10 }, (_, label) => {
    const mine = codes.filter((_, i) => labels[i] === label);
    return { label, at: [0, 1].map((j) => mine.map((z) => z[j]).sort((a, b) => a - b)[mine.length >> 1]) };
  });

  function look(follow = true) {
    const { x } = state;
    state.q = M.encode(model, x);
    const q = state.q.parts[0], found = M.onGrid(model, wide, x);
    state.density = found.density;
    state.samples = eps.slice(0, 8).map((e) => M.gaussianSample(q, e));
    if (follow) state.z = Array.from(q.loc);
    if (state.zoom) {
      const best = wide.z[found.density.indexOf(Math.max(...found.density))];
      const far = Math.max(...[0, 1].map((j) => Math.abs(best[j] - q.loc[j]) / 2)) + 0.35;
      state.near = M.gridOf(model, 70, far, [0, 1].map((j) => (best[j] + q.loc[j]) / 2));
      state.nearDensity = M.onGrid(model, state.near, x).density;
    }
    const elbo = M.mean(eps.map((e) => M.logWeight(model, state.q, x, M.gaussianSample(q, e))));
    table.set([[fixed(found.logP)], [fixed(elbo)], [fixed(found.logP - elbo)]]);
    say(`The encoder's guess costs ${fixed(found.logP - elbo, 1)} nats: ${found.logP - elbo < 1
      ? "it lies on the posterior." : "the posterior, in grey, is elsewhere or of another shape."}`);
    for (const c of [pad, map, image, rows]) c.redraw();
  }
  function ink([u, v], amount = 1) { // soft, as the scanned digits are
    for (let i = 0; i < 64; i++) {
      const away = Math.hypot((i % 8) + 0.5 - u, Math.floor(i / 8) + 0.5 - v);
      const add = Math.min(Math.max(1.25 - away, 0), 1);
      state.x[i] = amount > 0 ? Math.max(state.x[i], add) : away < 0.6 ? 0 : state.x[i];
    }
    look();
  }
  draggable(pad, "Drawing pad of 8 by 8 pixels. Draw with the pointer, or move with the arrow keys, space inks, backspace erases.",
    () => [state.cursor[0] + 0.5, 7.5 - state.cursor[1]], ([x, y]) => ink([x, 8 - y]));
  pad.element.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) state.cursor = state.cursor.map((v, i) => Math.min(Math.max(v + way[i], 0), 7));
    else if (event.key === " ") ink(state.cursor.map((v) => v + 0.5));
    else if (event.key === "Backspace") ink(state.cursor.map((v) => v + 0.5), 0);
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
    pad.redraw();
  }, true);
  for (const name of ["focus", "blur"]) pad.element.addEventListener(name, () => pad.redraw());
  draggable(map, "Map of codes z. Drag the ring or move it with the arrow keys: the image beside it is p of x given z.",
    () => state.z, (z) => { state.z = z; map.redraw(); image.redraw(); });
  button(controls, "Clear the pad", () => { state.x.fill(0); look(); }).classList.add("main");
  button(controls, "A digit it never saw", () => {
    state.x = Float64Array.from(digits[numTrain + Math.floor(random.uniform() * (digits.length - numTrain))]);
    look();
  });
  const zoom = button(controls, "Zoom to the posterior", () => {
    state.zoom = !state.zoom;
    zoom.textContent = state.zoom ? "The whole map" : "Zoom to the posterior";
    look(false);
  });
  look();
}
