"use strict";
// All that the page computes, without drawing: the same formulas as jaxvae, in float64. A test holds
// each of these functions to JAX. Matrices are flat arrays, row by row; a Gaussian is {loc, tril},
// N(loc, L L'), a mixture {logWeights, parts}; log-probabilities are in nats.
const mathematics = (() => {
  const LOG_2PI = Math.log(2 * Math.PI);
  function dot(a, b) {
    let s = 0;
    for (let i = 0; i < a.length; i++) s += a[i] * b[i];
    return s;
  }
  const sum = (a) => a.reduce((s, v) => s + v, 0), mean = (a) => sum(a) / a.length, squares = (a) => dot(a, a);
  const positive = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) + 1e-6; // softplus and a floor
  const array = (n, f) => Float64Array.from({ length: n }, (_, i) => f(i));
  // ---- randomness: a stream of uniforms (mulberry32) and of normals (Box and Muller)
  function randomness(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    return { uniform, normal, normals: (n) => array(n, normal) };
  }
  // ---- what the page ships: base64 of bytes, float16 or float32
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const float32 = (text) => Float64Array.from(new Float32Array(bytes(text).buffer));
  const float16 = (text) => Float64Array.from(new Uint16Array(bytes(text).buffer), (h) => {
    const [sign, e, m] = [h >> 15 ? -1 : 1, (h >> 10) & 31, h & 1023];
    return sign * (e ? 2 ** (e - 15) * (1 + m / 1024) : 2 ** -14 * (m / 1024));
  });
  // ---- weights: estimates from log w_1, ..., log w_K
  function logSumExp(a) {
    const top = a.reduce((p, q) => Math.max(p, q), -Infinity);
    return top + Math.log(a.reduce((s, v) => s + Math.exp(v - top), 0));
  }
  const logMeanExp = (a) => logSumExp(a) - Math.log(a.length); // IWAE_K; the ELBO is mean(a)
  const effectiveSampleSize = (a) => Math.exp(2 * logSumExp(a) - logSumExp(a.map((w) => 2 * w)));
  // ---- small matrices
  function cholesky(a, n) { // L lower, L L' = a
    const l = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) {
        let s = a[i * n + j];
        for (let k = 0; k < j; k++) s -= l[i * n + k] * l[j * n + k];
        l[i * n + j] = i === j ? Math.sqrt(s) : s / l[j * n + j];
      }
    return l;
  }
  function solveLower(l, b) { // L^-1 b
    const n = b.length, y = Float64Array.from(b);
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < i; k++) y[i] -= l[i * n + k] * y[k];
      y[i] /= l[i * n + i];
    }
    return y;
  }
  function solve(l, b) { // (L L')^-1 b
    const n = b.length, y = solveLower(l, b);
    for (let i = n - 1; i >= 0; i--) {
      for (let k = i + 1; k < n; k++) y[i] -= l[k * n + i] * y[k];
      y[i] /= l[i * n + i];
    }
    return y;
  }
  const inverse = (l, n) => // (L L')^-1
    array(n * n, (i) => solve(l, array(n, (j) => +(j === Math.floor(i / n))))[i % n]);
  const logDet = (l, n) => 2 * sum(array(n, (i) => Math.log(l[i * n + i]))); // of L L'
  const times = (a, x) => array(a.length / x.length, (i) => dot(x, a.subarray(i * x.length)));
  // ---- distributions
  const diagonal = (loc, scale) =>
    ({ loc, tril: array(loc.length ** 2, (i) => (i % (loc.length + 1) ? 0 : scale[i / (loc.length + 1)])) });
  const standardNormal = (k) => diagonal(new Float64Array(k), array(k, () => 1));
  const mixture = (logWeights, parts) => ({ logWeights, parts }), alone = (gaussian) => mixture([0], [gaussian]);
  const gaussianLogProb = ({ loc, tril }, z) => -0.5 * (squares(solveLower(tril, loc.map((v, i) => z[i] - v)))
    + logDet(tril, loc.length) + loc.length * LOG_2PI);
  const logProb = ({ logWeights, parts }, z) =>
    logSumExp(parts.map((p, i) => logWeights[i] + gaussianLogProb(p, z)));
  const gaussianSample = ({ loc, tril }, eps) => times(tril, eps).map((v, i) => loc[i] + v);
  function sample({ logWeights, parts }, random) {
    let u = random.uniform(), i = 0;
    while (i < parts.length - 1 && (u -= Math.exp(logWeights[i])) > 0) i++;
    return gaussianSample(parts[i], random.normals(parts[i].loc.length));
  }
  function klOfGaussians(q, p) { // 1/2 [tr(P^-1 Q) + |m_p - m_q|^2_P - k + log |P| - log |Q|]
    const k = q.loc.length, moved = solveLower(p.tril, q.loc.map((v, i) => v - p.loc[i]));
    const trace = sum(array(k, (j) => squares(solveLower(p.tril, array(k, (i) => q.tril[i * k + j])))));
    return 0.5 * (trace + squares(moved) - k + logDet(p.tril, k) - logDet(q.tril, k));
  }
  function squaredDistance(x, y) {
    let s = 0;
    for (let i = 0; i < x.length; i++) s += (x[i] - y[i]) ** 2;
    return s;
  }
  const pixelsLogProb = (x, loc, sigma) => // log N(x; loc, sigma^2 I)
    -0.5 * x.length * (LOG_2PI + 2 * Math.log(sigma)) - squaredDistance(x, loc) / (2 * sigma * sigma);
  // ---- networks: dense layers with ReLU between them
  function network(sizes, flat) {
    let at = 0;
    const take = (n) => flat.slice(at, (at += n));
    return sizes.slice(1).map((m, i) => ({ n: sizes[i], m, w: take(sizes[i] * m), b: take(m) }));
  }
  const freshNetwork = (sizes, random) => sizes.slice(1).map((m, i) => ({
    n: sizes[i], m, w: array(sizes[i] * m, () => random.normal() / Math.sqrt(sizes[i])), b: new Float64Array(m),
  }));
  function activations(layers, x) { // [input, hidden, ..., output]
    const all = [x];
    layers.forEach(({ n, m, w, b }, l) => {
      const y = Float64Array.from(b), h = all[l];
      for (let i = 0; i < n; i++) if (h[i] !== 0) for (let j = 0; j < m; j++) y[j] += h[i] * w[i * m + j];
      if (l < layers.length - 1) for (let j = 0; j < m; j++) if (y[j] < 0) y[j] = 0;
      all.push(y);
    });
    return all;
  }
  const forward = (layers, x) => activations(layers, x)[layers.length];
  function backward(layers, all, slope, into) { // adds to `into`; the slope in the input comes back
    for (let l = layers.length - 1; l >= 0; l--) {
      const { n, m, w } = layers[l], h = all[l], below = new Float64Array(n);
      for (let j = 0; j < m; j++) into[l].b[j] += slope[j];
      for (let i = 0; i < n; i++) {
        below[i] = dot(slope, w.subarray(i * m));
        for (let j = 0; j < m; j++) into[l].w[i * m + j] += h[i] * slope[j];
      }
      slope = l ? below.map((v, i) => (h[i] > 0 ? v : 0)) : below;
    }
    return slope;
  }
  // ---- a VAE: encode, decode, prior, by the names of its parts
  const heads = {
    diagonal: (raw, k) => alone(diagonal(raw.slice(0, k), raw.slice(k).map(positive))),
    full(raw, k) { // mu, then the lower triangle of L row by row
      const tril = new Float64Array(k * k);
      for (let i = 0, at = k; i < k; i++)
        for (let j = 0; j <= i; j++) tril[i * k + j] = i === j ? positive(raw[at++]) : raw[at++];
      return alone({ loc: raw.slice(0, k), tril });
    },
    mixture: (raw, k) => gaussians(raw, k, positive),
  };
  function gaussians(raw, k, toScale) { // logits [n], means [n, k], raw scales [n, k]
    const n = raw.length / (1 + 2 * k), logits = Array.from(raw.slice(0, n)), total = logSumExp(logits);
    const row = (i) => raw.slice(n + i * k, n + i * k + k);
    return mixture(logits.map((v) => v - total), logits.map((_, i) => diagonal(row(i), row(n + i).map(toScale))));
  }
  const encode = (model, x) => heads[model.posterior](forward(model.encoder, x), model.latents); // q(z|x)
  const decode = (model, z) => forward(model.decoder, z); // the mean of p(x|z)
  function unpacked(shipped, sigma) {
    const of = ({ sizes, weights }) => network(sizes, float16(weights));
    const leaves = float16(shipped.prior_leaves), k = shipped.decode.sizes[0];
    const model = { ...shipped, sigma, latents: k, encoder: of(shipped.encode), decoder: of(shipped.decode) };
    const priors = { normal: () => alone(standardNormal(k)), mixture: () => gaussians(leaves, k, Math.exp),
      vamp: () => vampPrior(model, leaves) };
    return Object.assign(model, { priorDistribution: priors[shipped.prior]() });
  }
  function vampPrior(model, inputs) { // the mean of q(z|u) over pseudo-inputs u
    const count = inputs.length / 64;
    const all = Array.from({ length: count }, (_, i) => encode(model, inputs.slice(64 * i, 64 * i + 64)));
    return mixture(all.flatMap((q) => q.logWeights.map((w) => w - Math.log(count))), all.flatMap((q) => q.parts));
  }
  const logWeight = (model, q, x, z) => // log p(x|z) + log p(z) - log q(z)
    pixelsLogProb(x, decode(model, z), model.sigma) + logProb(model.priorDistribution, z) - logProb(q, z);
  // ---- two latents: p(x) and p(z|x) by a sum over a grid of m x m points
  function gridOf(model, m, halfWidth, centre = [0, 0]) { // the decodings do not depend on x: made once
    const z = Array.from({ length: m * m }, (_, i) => [Math.floor(i / m), i % m].map(
      (j, axis) => centre[axis] + halfWidth * ((2 * j) / (m - 1) - 1)));
    const images = z.map((point) => Float32Array.from(decode(model, point)));
    const prior = Float64Array.from(z, (point) => logProb(model.priorDistribution, point));
    return { m, halfWidth, centre, z, images, prior, logCell: 2 * Math.log((2 * halfWidth) / (m - 1)) };
  }
  function onGrid(model, grid, x) { // log p(x), and log p(z|x) at every point
    const joint = grid.prior.map((p, i) => p + pixelsLogProb(x, grid.images[i], model.sigma));
    const logP = logSumExp(joint) + grid.logCell;
    return { logP, density: joint.map((v) => v - logP) };
  }
  // ---- the linear VAE, p(x|z) = N(W z + mean, variance I), all of it exact
  const centred = ({ mean }, x) => array(x.length, (i) => x[i] - mean[i]);
  function transposeTimes(w, r) { // W' r
    const k = w.length / r.length, y = new Float64Array(k);
    for (let i = 0; i < r.length; i++) for (let j = 0; j < k; j++) y[j] += w[i * k + j] * r[i];
    return y;
  }
  const gram = (w, k) => // W'W
    array(k * k, (a) => sum(array(w.length / k, (i) => w[i * k + Math.floor(a / k)] * w[i * k + (a % k)])));
  function choleskyOfM({ weight, mean, variance }) { // of M = W'W + variance I
    const d = mean.length, k = weight.length / d;
    return { l: cholesky(gram(weight, k).map((v, i) => (i % (k + 1) ? v : v + variance)), k), k, d };
  }
  function linearPosterior(params, x) { // N(M^-1 W'(x - mean), variance M^-1)
    const { l, k } = choleskyOfM(params);
    const covariance = inverse(l, k).map((v) => v * params.variance);
    return { loc: solve(l, transposeTimes(params.weight, centred(params, x))), tril: cholesky(covariance, k) };
  }
  function linearLogMarginal(params, x) { // log N(x; mean, W W' + variance I)
    const { l, k, d } = choleskyOfM(params), r = centred(params, x);
    const explained = solveLower(l, transposeTimes(params.weight, r));
    return -0.5 * (d * LOG_2PI + (d - k) * Math.log(params.variance) + logDet(l, k)
      + (squares(r) - squares(explained)) / params.variance);
  }
  const linearDecode = ({ weight, mean }, z) => times(weight, z).map((v, i) => v + mean[i]);
  function emStep(params, xs) { // E[z|x] and E[zz'|x], then the parameters that are best for these
    const { l, k, d } = choleskyOfM(params), n = xs.length, covariance = inverse(l, k);
    const second = covariance.map((v) => n * params.variance * v), cross = new Float64Array(d * k);
    const norm = sum(xs.map((x) => squares(centred(params, x))));
    for (const x of xs) {
      const r = centred(params, x), z = solve(l, transposeTimes(params.weight, r));
      for (let a = 0; a < k * k; a++) second[a] += z[Math.floor(a / k)] * z[a % k];
      for (let i = 0; i < d; i++) for (let j = 0; j < k; j++) cross[i * k + j] += r[i] * z[j];
    }
    const s = cholesky(second, k), weight = new Float64Array(d * k);
    for (let i = 0; i < d; i++) weight.set(solve(s, cross.slice(i * k, i * k + k)), i * k);
    const residual = norm - 2 * dot(weight, cross) + dot(second, gram(weight, k));
    return { weight, mean: params.mean, variance: residual / (n * d) };
  }
  function rateDistortion(values, k, beta, sigma) { // the best linear model at (beta, sigma)
    const water = beta * sigma * sigma, active = values.slice(0, k).filter((v) => v > water);
    const left = water * active.length + sum(values.slice(active.length));
    const distortion = left / (2 * sigma * sigma) + 0.5 * values.length * (LOG_2PI + 2 * Math.log(sigma));
    return { rate: 0.5 * sum(active.map((v) => Math.log(v / water))), distortion, active: active.length };
  }
  function waterFilled(values, vectors, k, mean, beta, sigma) { // W = U (L - beta sigma^2)^1/2
    const variance = beta * sigma * sigma, size = values.map((v) => Math.sqrt(Math.max(v - variance, 0)));
    const d = mean.length, direction = (i, j) => vectors[(i * vectors.length) / d + j];
    return { weight: array(d * k, (i) => direction(Math.floor(i / k), i % k) * size[i % k]), mean, variance };
  }
  // ---- q against the posterior in one coordinate, in the posterior's sds: q = N(t, c^2), p = N(0, 1)
  const gapOf = (t, c) => 0.5 * (t * t + c * c - 1) - Math.log(c);
  const shareThatCounts = (t, c) => { // effective sample size of K draws, over K, for large K
    const a = 2 * c * c - 1; // at 0 and below the weights' variance is infinite
    return a > 0 ? (Math.sqrt(a) / (c * c)) * Math.exp((-t * t) / a) : 0;
  };
  // E[log p(x) - IWAE_K] = int_0^inf (E exp(-s w/K)^K - exp(-s)) / s ds, with w scaled to mean 1
  function iwaeGap(t, c, samples) {
    const reach = 9 * Math.max(1, 1 / c) + Math.abs(t) / c, count = Math.ceil(reach / 0.01), step = reach / count;
    const draws = array(2 * count + 1, (i) => (i - count) * step);
    const p = draws.map((e) => step * Math.exp(-0.5 * (e * e + LOG_2PI)));
    const w = draws.map((e) => c * Math.exp((e * e - (t + c * e) ** 2) / 2));
    let total = 0;
    for (let u = -45, less = 0; u < 400 && less < 1 - 1e-13; u += 0.25) {
      less = 0;
      for (let i = 0; i < w.length; i++) less -= p[i] * Math.expm1((-Math.exp(u) / samples) * w[i]);
      total += 0.25 * (Math.exp(samples * Math.log1p(-Math.min(less, 1))) - Math.exp(-Math.exp(u)));
    }
    return total;
  }
  // two gradients of the ELBO in t, k coordinates: exactly -t; `f` is ELBO's integrand less log p(x)
  const integrand = (t, c, eps) =>
    sum(eps.map((e, i) => (e * e - (t[i] + c * e) ** 2) / 2)) + eps.length * Math.log(c);
  const pathwiseGradient = (t, c, eps) => eps.map((e, i) => -(t[i] + c * e));
  const scoreGradient = (t, c, eps, baseline) => eps.map((e) => ((integrand(t, c, eps) - baseline) * e) / c);
  function scoreVariance(t, c, baseline) { // in all, of one draw
    const k = t.length, b = (1 - c * c) / 2, t2 = squares(t), a = k * Math.log(c) - t2 / 2 - baseline;
    return (a * a * k + 2 * a * b * k * (k + 2) + b * b * k * (k + 2) * (k + 4)
      + c * c * t2 * (k + 2)) / (c * c) - t2;
  }
  const diagonalLoss = (precision, k) => 0.5 * (sum(array(k, (i) => Math.log(precision[i * (k + 1)])))
    - logDet(cholesky(precision, k), k));
  // ---- training: the ELBO of N(mu, diag s^2) against N(0, I), its slope, and Adam
  const zeros = (layers) => layers.map(({ w, b }) => ({ w: w.map(() => 0), b: b.map(() => 0) }));
  function elboSlope({ encoder, decoder, sigma, latents: k }, xs, eps, beta) {
    const slope = { encoder: zeros(encoder), decoder: zeros(decoder), distortion: 0, rate: 0 };
    const n = xs.length, v = sigma * sigma;
    xs.forEach((x, row) => { // of the mean over rows of distortion + beta rate
      const up = activations(encoder, x), raw = up[encoder.length];
      const s = raw.slice(k).map(positive), z = array(k, (i) => raw[i] + s[i] * eps[row][i]);
      const down = activations(decoder, z), image = down[decoder.length];
      slope.distortion -= pixelsLogProb(x, image, sigma) / n;
      slope.rate += klOfGaussians(diagonal(raw.slice(0, k), s), standardNormal(k)) / n;
      const below = backward(decoder, down, image.map((y, i) => (y - x[i]) / (v * n)), slope.decoder);
      backward(encoder, up, array(2 * k, (i) => i < k ? below[i] + (beta * raw[i]) / n
        : (below[i - k] * eps[row][i - k] + (beta * (s[i - k] - 1 / s[i - k])) / n)
          / (1 + Math.exp(-raw[i]))), slope.encoder);
    });
    return slope;
  }
  const freshAdam = (layers) => ({ step: 0, m: zeros(layers), v: zeros(layers) });
  function adam(layers, slope, memory, rate) { // Kingma and Ba 2015, in place
    const t = ++memory.step;
    layers.forEach((layer, l) => ["w", "b"].forEach((name) => {
      const [at, g, m, v] = [layer, slope[l], memory.m[l], memory.v[l]].map((a) => a[name]);
      for (let i = 0; i < g.length; i++) {
        m[i] = 0.9 * m[i] + 0.1 * g[i];
        v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
        at[i] -= (rate * m[i] / (1 - 0.9 ** t)) / (Math.sqrt(v[i] / (1 - 0.999 ** t)) + 1e-8);
      }
    }));
  }
  const nearestDistance = (image, others) =>
    Math.sqrt(others.reduce((least, other) => Math.min(least, squaredDistance(image, other)), Infinity));
  return { sum, mean, array, randomness, bytes, float16, float32, logSumExp, logMeanExp, effectiveSampleSize,
    inverse, diagonal, standardNormal, alone, gaussianLogProb, logProb, gaussianSample, sample, klOfGaussians,
    pixelsLogProb, freshNetwork, encode, decode, unpacked, logWeight, gridOf, onGrid, linearPosterior,
    linearLogMarginal, linearDecode, emStep, rateDistortion, waterFilled, gapOf, shareThatCounts, iwaeGap,
    integrand, pathwiseGradient, scoreGradient, scoreVariance, diagonalLoss, elboSlope, freshAdam, adam,
    nearestDistance };
})();
if (typeof module !== "undefined") module.exports = mathematics;
