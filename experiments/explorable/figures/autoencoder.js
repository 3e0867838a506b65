"use strict";
// Step 1: an autoencoder's codes leave holes, and the prior's draws fall into them.
function autoencoderFigure() {
  const M = mathematics, stage = partOf("autoencoder", "stage"), controls = partOf("autoencoder", "controls");
  const names = { autoencoder: "Autoencoder", vae: "VAE" }, train = digits.slice(0, numTrain);
  const all = data.pairs.map((shipped) => M.unpacked(shipped, sigma));
  const state = { latents: 2, z: [1, 1], random: M.randomness(5) };
  const sides = Object.entries(names).map(([name, title]) => ({ name, title, colour: name === "vae" ? "blue" : "red" }));
  for (const side of sides) {
    side.map = new Canvas(stage, { title: side.title, label: "", paint(c) {
      const r = state.reach;
      c.axes({ x: [-r, r], y: [-r, r], bare: true });
      c.heat(side.far, 41, colours.muted, { strength: 0.75 });
      c.dots(side.shown, (i) => ofClass(labels[i]), { radius: 1.6, alpha: CODES });
      for (const radius of [1, 2]) c.gaussian(M.standardNormal(2), colours.ink, { radii: [radius], width: 1.5 });
      c.dots(side.draws, colours.paper, { radius: 6 });
      c.dots(side.draws, colours[side.colour], { radius: 4.2 });
      c.handle(state.z, colours.ink);
    } });
    side.image = new Canvas(stage, { title: "at the ring", label: `The ${title(side)}'s image at the ring`, paint(c) {
      c.digit(side.decoded(state.z), 0, 0, c.width, { frame: colours[side.colour] });
    } });
    side.image.panel.classList.add("tiny");
  }
  function title(side) { return side.title; }
  const rows = strip(partOf("autoencoder", "strips"), "Draws of N(0, I) decoded by both", () => [
    ["test digits", digits.slice(-10)],
    ...sides.map((s) => [`${s.title} rebuilds`, digits.slice(-10).map((x) => M.decode(s.model, M.encode(s.model, x).parts[0].loc))]),
    ...sides.map((s) => [`${s.title} invents`, state.full.slice(0, 10).map((z) => M.decode(s.model, z))]),
  ]);
  const table = numbers(partOf("autoencoder", "numbers"), "Measured in this page", ["Autoencoder", "VAE"],
    ["squared error, rebuilt test digits", "distance of 100 inventions to the nearest training digit", "the ring's image to the nearest training digit"]);
  const say = saying(partOf("autoencoder", "numbers"));

  function choose(latents) {
    state.latents = latents;
    for (const side of sides) {
      side.model = all.find((m) => m.name === side.name && m.latents === latents);
      const q = digits.map((x) => M.encode(side.model, x).parts[0]);
      const codes = side.name === "vae" ? q.map((g) => M.gaussianSample(g, state.random.normals(latents))) : q.map((g) => g.loc);
      // the map shows the plane of the codes' two longest axes, through the prior's mean
      side.axes = latents === 2 ? [[1, 0], [0, 1]] : M.principalAxes(codes, 2);
      side.place = (z) => side.axes.map((axis) => M.dot(axis, z));
      side.shown = codes.map(side.place);
      side.decoded = (p) => M.decode(side.model, M.array(latents, (j) => M.sum(side.axes.map((axis, i) => axis[j] * p[i]))));
    }
    const far = sides.flatMap((s) => s.shown.flatMap((z) => z.map(Math.abs))).sort((a, b) => a - b);
    state.reach = Math.max(3, far[Math.floor(far.length * 0.997)]);
    for (const side of sides) { // how far from any digit the decodings are, over the map
      side.far = M.array(41 * 41, (i) => {
        const p = [Math.floor(i / 41), i % 41].map((j) => state.reach * (j / 20 - 1));
        return Math.min(M.nearestDistance(side.decoded(p), train.slice(0, 400)) / 4, 1);
      });
    }
    draw();
  }
  function draw() {
    const { latents } = state;
    state.full = Array.from({ length: 100 }, () => state.random.normals(latents));
    for (const side of sides) {
      side.draws = state.full.slice(0, 10).map(side.place);
      side.error = M.mean(digits.slice(-300).map((x) =>
        M.squaredDistance(x, M.decode(side.model, M.encode(side.model, x).parts[0].loc))));
      side.distance = M.mean(state.full.map((z) => M.nearestDistance(M.decode(side.model, z), train)));
    }
    say(`The autoencoder's inventions lie ${fixed(sides[0].distance, 1)} from any digit, the VAE's ${fixed(sides[1].distance, 1)}; both rebuild alike.`);
    move(state.z);
  }
  function move(z) {
    state.z = z;
    table.set([sides.map((s) => fixed(s.error)), sides.map((s) => fixed(s.distance)),
      sides.map((s) => fixed(M.nearestDistance(s.decoded(z), train)))]);
    for (const side of sides) { side.map.redraw(); side.image.redraw(); }
    rows.redraw();
  }
  for (const side of sides) draggable(side.map,
    `Map of the ${side.title}'s codes, with one and two standard deviations of the prior. Move the ring with the arrow keys.`, () => state.z, move);
  button(controls, "Draw from N(0, I) again", draw).classList.add("main");
  choice(controls, "latents", [[2, "2: the map is all there is"], [8, "8: the map is a plane through them"]], (v) => choose(Number(v)));
  choose(2);
}
