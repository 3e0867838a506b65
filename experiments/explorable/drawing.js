"use strict";
// Canvases, plots and controls: how the figures show what mathematics.js computes.

const data = JSON.parse(document.getElementById("data").textContent);
const pixels = mathematics.bytes(data.digits);
const digits = Array.from({ length: pixels.length / 64 }, (_, i) =>
  mathematics.array(64, (j) => pixels[64 * i + j] / 16));
const labels = mathematics.bytes(data.labels);
const numTrain = data.num_train; // the rest was never trained on
const sigma = data.sigma;

// ---- colours: those of the style sheet, read again when it changes from light to dark
const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "card", "ink", "muted", "line", "blue", "red", "orange", "green"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  colours.dark = style.colorScheme.includes("dark");
}
// ten hues of one lightness, whose contrast with the card is above 3 for dots of this opacity, too
const ofClass = (label) => `oklch(${colours.dark ? 0.75 : 0.52} 0.14 ${(label * 36 + 10) % 360})`;
const CODES = 0.8;
const canvases = [];
function redrawAll() {
  readColours();
  canvases.forEach((c) => c.redraw());
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const partOf = (figure, name) => document.querySelector(`#${figure} .${name}`);
const mixed = new Map();
function rgb(colour) { // its red, green and blue, to set pixels with
  if (!mixed.has(colour)) {
    const g = element("canvas").getContext("2d");
    g.fillStyle = colour;
    g.fillRect(0, 0, 1, 1);
    mixed.set(colour, g.getImageData(0, 0, 1, 1).data);
  }
  return mixed.get(colour);
}

// ---- a canvas that fits its panel, sharp on any screen; `paint(canvas)` draws it
class Canvas {
  constructor(parent, { title, label, ratio = 1, paint }) {
    this.element = element("canvas", { role: "img", "aria-label": label });
    this.panel = element("div", { class: "panel" });
    if (title) this.panel.append(element("p", { class: "title" }, title));
    this.panel.append(this.element);
    parent.append(this.panel);
    this.g = this.element.getContext("2d");
    this.ratio = ratio;
    this.least = 0; // pixels of height
    this.paint = paint;
    new ResizeObserver(() => this.redraw()).observe(this.panel);
    canvases.push(this);
  }
  describe(label) {
    this.element.setAttribute("aria-label", label);
  }
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.now());
  }
  now() {
    this.waiting = false;
    const width = this.panel.clientWidth, height = Math.max(Math.round(width * this.ratio), this.least);
    if (!width) return;
    const scale = window.devicePixelRatio || 1, canvas = this.element;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    this.width = width;
    this.height = height;
    this.g.setTransform(scale, 0, 0, scale, 0, 0);
    this.g.clearRect(0, 0, width, height);
    this.g.globalAlpha = 1;
    this.g.setLineDash([]);
    this.paint(this);
  }

  // -- axes: afterwards coordinates are those of the data
  axes({ x, y, xLabel, yLabel, logX, logY, xTicks, yTicks, bare, left = 46, xFormat, yFormat }) {
    if (!bare && this.least === 0) {
      this.least = 190; // a plot with axes on a narrow screen
      if (this.height < this.least) this.redraw();
    }
    const g = this.g, box = bare ? { l: 1, r: 1, t: 1, b: 1 } : { l: left, r: 26, t: 20, b: 38 };
    const scale = (range, from, to, log) => {
      const [lo, hi] = log ? range.map(Math.log) : range;
      return (v) => from + (((log ? Math.log(v) : v) - lo) / (hi - lo)) * (to - from);
    };
    this.box = box;
    this.range = { x, y };
    this.px = scale(x, box.l, this.width - box.r, logX);
    this.py = scale(y, this.height - box.b, box.t, logY);
    this.inverse = (px, py) => [
      x[0] + ((px - box.l) / (this.width - box.r - box.l)) * (x[1] - x[0]),
      y[0] + ((this.height - box.b - py) / (this.height - box.b - box.t)) * (y[1] - y[0]),
    ];
    g.lineWidth = 1;
    g.strokeStyle = colours.line;
    g.font = "12px system-ui, sans-serif";
    g.fillStyle = colours.muted;
    if (bare) {
      g.strokeRect(0.5, 0.5, this.width - 1, this.height - 1);
      return;
    }
    const most = Math.max(2, Math.floor((this.width - box.l) / 62));
    g.textAlign = "center";
    for (const tick of thinned(xTicks || ticks(x, logX, most), most)) {
      const at = this.px(tick);
      this.segment([at, box.t], [at, this.height - box.b], colours.line);
      g.fillText((xFormat || short)(tick), at, this.height - box.b + 15);
    }
    g.textAlign = "right";
    for (const tick of yTicks || ticks(y, logY, Math.max(2, Math.floor(this.height / 42)))) {
      const at = this.py(tick);
      this.segment([box.l, at], [this.width - box.r, at], colours.line);
      g.fillText((yFormat || short)(tick), box.l - 6, at + 4);
    }
    g.textAlign = "right";
    if (xLabel) g.fillText(xLabel, this.width - box.r, this.height - 4);
    g.textAlign = "left";
    if (yLabel) g.fillText(yLabel, 2, 12);
  }
  segment([a, b], [c, d], colour, width = 1) {
    const g = this.g;
    g.strokeStyle = colour;
    g.lineWidth = width;
    g.beginPath();
    g.moveTo(a, b);
    g.lineTo(c, d);
    g.stroke();
  }
  clipped(draw) { // nothing outside of the axes
    const g = this.g, { l, r, t, b } = this.box;
    g.save();
    g.beginPath();
    g.rect(l, t, this.width - l - r, this.height - t - b);
    g.clip();
    draw();
    g.restore();
  }
  line(points, colour, { width = 2, dash = [], fill, alpha = 1, close } = {}) {
    const g = this.g;
    this.clipped(() => {
      g.globalAlpha = alpha;
      g.beginPath();
      points.forEach(([x, y], i) => g[i ? "lineTo" : "moveTo"](this.px(x), this.py(y)));
      if (close) g.closePath();
      if (fill) {
        g.fillStyle = colour;
        g.fill();
      } else {
        g.strokeStyle = colour;
        g.lineWidth = width;
        g.setLineDash(dash);
        g.lineJoin = "round";
        g.stroke();
      }
    });
  }
  level(y, colour, options) {
    this.line(this.range.x.map((x) => [x, y]), colour, options);
  }
  dots(points, colour, { radius = 2.5, alpha = 1 } = {}) {
    const g = this.g;
    this.clipped(() => {
      g.globalAlpha = alpha;
      points.forEach(([x, y], i) => {
        g.fillStyle = typeof colour === "function" ? colour(i) : colour;
        g.beginPath();
        g.arc(this.px(x), this.py(y), typeof radius === "function" ? radius(i) : radius, 0, 7);
        g.fill();
      });
    });
  }
  gaussian({ loc, tril }, colour, { radii = [1, 2], ...options } = {}) { // ellipses of 1 and 2 sds
    for (const radius of radii)
      this.line(Array.from({ length: 73 }, (_, i) => {
        const [a, b] = [Math.cos((i * Math.PI) / 36), Math.sin((i * Math.PI) / 36)];
        return [loc[0] + radius * tril[0] * a, loc[1] + radius * (tril[2] * a + tril[3] * b)];
      }), colour, options);
  }
  handle([x, y], colour, text) {
    const g = this.g, [a, b] = [this.px(x), this.py(y)];
    g.beginPath();
    g.arc(a, b, 10, 0, 7);
    for (const [stroke, width] of [[colours.paper, 7], [colour, 3.5]]) {
      g.strokeStyle = stroke;
      g.lineWidth = width;
      g.stroke();
    }
    if (text) this.write(text, a + 13, b + 5, colour);
  }
  arrow([x, y], [u, v], colour, width = 2) { // by a vector of the data
    const g = this.g, [a, b, c, d] = [this.px(x), this.py(y), this.px(x + u), this.py(y + v)];
    const angle = Math.atan2(d - b, c - a);
    this.clipped(() => {
      this.segment([a, b], [c, d], colour, width);
      g.fillStyle = colour;
      g.beginPath();
      g.moveTo(c, d);
      for (const turn of [2.6, -2.6]) g.lineTo(c + 9 * Math.cos(angle + turn), d + 9 * Math.sin(angle + turn));
      g.fill();
    });
  }
  write(text, x, y, colour, { align = "left", size = 13, bold } = {}) { // at pixels
    const g = this.g;
    g.font = `${bold ? "600 " : ""}${size}px system-ui, sans-serif`;
    g.textAlign = align;
    g.lineWidth = 4;
    g.strokeStyle = colours.card;
    g.strokeText(text, x, y);
    g.fillStyle = colour;
    g.fillText(text, x, y);
  }
  at(text, x, y, colour, options) { // at a place of the data
    this.write(text, this.px(x), this.py(y), colour, options);
  }
  heat(values, m, colour, { strength = 0.85 } = {}) { // values in 0 to 1, x the slow axis, over the axes
    const sheet = document.createElement("canvas"), [r, g, b] = rgb(colour);
    sheet.width = sheet.height = m;
    const image = new ImageData(m, m);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < m; j++)
        image.data.set([r, g, b, 255 * strength * values[i * m + j]], 4 * ((m - 1 - j) * m + i));
    sheet.getContext("2d").putImageData(image, 0, 0);
    const { l, r: right, t, b: bottom } = this.box;
    this.g.imageSmoothingEnabled = true;
    this.g.drawImage(sheet, l, t, this.width - l - right, this.height - t - bottom);
  }
  digit(image, x, y, size, { frame } = {}) { // 8x8 pixels at a place of the canvas
    const g = this.g, sheet = document.createElement("canvas"), [r, v, b] = rgb(colours.ink);
    sheet.width = sheet.height = 8;
    const cells = new ImageData(8, 8);
    for (let i = 0; i < 64; i++)
      cells.data.set([r, v, b, 255 * Math.min(Math.max(image[i], 0), 1)], 4 * i);
    sheet.getContext("2d").putImageData(cells, 0, 0);
    g.imageSmoothingEnabled = false;
    g.globalAlpha = 1;
    g.fillStyle = colours.paper;
    g.fillRect(x, y, size, size);
    g.drawImage(sheet, x, y, size, size);
    g.strokeStyle = frame || colours.line;
    g.lineWidth = frame ? 2.5 : 1;
    g.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
  }
}

function ticks([lo, hi], log, most) {
  if (log) {
    const all = [];
    for (let e = Math.ceil(Math.log10(lo) - 1e-9); e <= Math.log10(hi) + 1e-9; e++) all.push(10 ** e);
    return all.length > 1 ? all : [lo, Math.sqrt(lo * hi), hi];
  }
  const rough = (hi - lo) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((v) => v * power).find((v) => v >= rough);
  const all = [];
  for (let v = Math.ceil(lo / step - 1e-9) * step; v <= hi + 1e-9 * step; v += step) all.push(v);
  return all;
}
const thinned = (all, most) => all.filter((_, i) => i % Math.ceil(all.length / most) === 0);
function short(v) {
  if (Math.abs(v) < 1e-9) return "0";
  const text = Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3));
  return text.replace("-", "−");
}
const fixed = (v, n = 2) =>
  (Math.abs(v) >= 1e5 ? Math.round(v).toLocaleString("en") : v.toFixed(n)).replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");
const whole = (n) => Math.round(n).toLocaleString("en");

// ---- controls
function slider(parent, { label, min, max, step, value, log, format = (v) => fixed(v), oninput }) {
  const to = (v) => (log ? Math.log(v) : v), from = (v) => (log ? Math.exp(v) : v);
  const output = element("output", {}, format(value));
  const input = element("input", {
    type: "range", min: to(min), max: to(max), value: to(value), "aria-label": label,
    step: log ? (to(max) - to(min)) / 200 : step, "aria-valuetext": format(value),
  });
  const control = { value, input, set(v) {
    control.value = v;
    input.value = to(v);
    output.textContent = format(v);
    input.setAttribute("aria-valuetext", format(v));
  } };
  input.value = to(value);
  input.addEventListener("input", () => {
    const v = from(Number(input.value));
    control.value = step && log ? Math.round(v / step) * step : v;
    output.textContent = format(control.value);
    input.setAttribute("aria-valuetext", format(control.value));
    oninput(control.value);
  });
  parent.append(element("label", { class: "slider" }, element("span", {}, label, " ", output), input));
  return control;
}
function button(parent, text, onclick) {
  const made = element("button", { type: "button", onclick }, text);
  parent.append(made);
  return made;
}
function choice(parent, label, options, onchange) { // options: [value, what is shown], the first is chosen
  const select = element("select", { onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  parent.append(element("label", { class: "choice" }, element("span", {}, label), select));
  return select;
}
function numbers(parent, caption, columns, names) { // a table; `.set([[...], ...])` fills it
  const cells = names.map(() => columns.map(() => element("td")));
  parent.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, element("td"), ...columns.map((c) => element("th", { scope: "col" }, c)))),
      element("tbody", {}, ...names.map((name, i) =>
        element("tr", {}, element("th", { scope: "row" }, name), ...cells[i]))))));
  return { set: (rows) => rows.forEach((row, i) => row.forEach((v, j) => { cells[i][j].textContent = v; })) };
}
function saying(parent) { // one sentence that follows the figure, renewed often enough to be read aloud
  const line = element("p", { class: "says", role: "status" });
  parent.append(line);
  let last = 0, timer;
  return (text) => {
    clearTimeout(timer);
    const show = () => { last = performance.now(); line.textContent = text; };
    if (performance.now() - last > 700) show();
    else timer = setTimeout(show, 700 - (performance.now() - last));
  };
}
// a point that the mouse, a finger or the arrow keys move over the axes of a canvas
function draggable(canvas, label, get, set) {
  const node = canvas.element;
  node.setAttribute("role", "application");
  node.setAttribute("tabindex", "0");
  node.setAttribute("aria-roledescription", "map");
  canvas.describe(label);
  node.classList.add("drag");
  const move = (event) => {
    const box = node.getBoundingClientRect();
    const [x, y] = canvas.inverse(event.clientX - box.left, event.clientY - box.top);
    const { x: [a, b], y: [c, d] } = canvas.range;
    set([Math.min(Math.max(x, a), b), Math.min(Math.max(y, c), d)]);
  };
  node.addEventListener("pointerdown", (event) => {
    try { node.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone */ }
    move(event);
  });
  node.addEventListener("pointermove", (event) => event.buttons && move(event));
  node.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const { x: [a, b], y: [c, d] } = canvas.range, size = (event.shiftKey ? 0.1 : 0.02);
    const [x, y] = get();
    set([Math.min(Math.max(x + way[0] * size * (b - a), a), b), Math.min(Math.max(y + way[1] * size * (d - c), c), d)]);
  });
}
// `step()` each frame while it runs and is seen; it returns false to stop
function animation(parent, names, step) {
  let running = false;
  const visible = { now: true };
  new IntersectionObserver(([entry]) => { visible.now = entry.isIntersecting; }).observe(parent.closest("figure"));
  const control = { get running() { return running; }, start() {
    if (running) return;
    running = true;
    made.textContent = names[1];
    const frame = () => {
      if (!running) return;
      if (visible.now && step() === false) control.stop();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }, stop() {
    running = false;
    made.textContent = names[0];
  } };
  const made = button(parent, names[0], () => (running ? control.stop() : control.start()));
  made.classList.add("main");
  return control;
}
// rows of digits, each with its name; `rows()` gives [name, images, frame colour or none]
function strip(parent, label, rows, columns = 10) {
  const canvas = new Canvas(parent, { label, ratio: 0.4, paint(c) {
    const all = rows();
    c.g.font = "12.5px system-ui, sans-serif";
    const name = c.width < 560 ? 0 : 14 + Math.max(...all.map(([text]) => c.g.measureText(text).width));
    const count = Math.min(columns, Math.max(...all.map(([, images]) => images.length)));
    const size = Math.min((c.width - name) / count, 64), high = size + (name ? 6 : 24);
    const ratio = (all.length * high) / c.width;
    if (Math.abs(ratio - c.ratio) > 1e-6) {
      c.ratio = ratio;
      c.redraw();
      return;
    }
    all.forEach(([text, images, frame], i) => {
      c.write(text, 0, name ? i * high + size / 2 + 4 : i * high + 14, colours.muted, { size: 12.5 });
      images.slice(0, count).forEach((image, j) =>
        c.digit(image, name + j * size, i * high + (name ? 0 : 19), size - 4, { frame: frame && frame(j) }));
    });
  } });
  canvas.panel.classList.add("wide");
  return canvas;
}
