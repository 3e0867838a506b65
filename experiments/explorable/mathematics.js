"use strict";
// The mathematics of the page, without drawing: the same formulas as jaxvae, in float64. Tests hold what
// is returned below to jaxvae, JAX or NumPy, and what is random to its law. Matrices are flat arrays, row
// by row; a Gaussian is {loc, tril}, N(loc, L L'), a mixture {logWeights, parts}; log-probabilities are in nats.
const mathematics = (() => {
  const LOG_2PI = Math.log(2 * Math.PI);
  function total(n, f) { // f(0) + ... + f(n - 1)
    let s = 0;
    for (let i = 0; i < n; i++) s += f(i);
    return s;
  }
  const sum = (a) => total(a.length, (i) => a[i]), mean = (a) => sum(a) / a.length;
  const dot = (a, b) => total(a.length, (i) => a[i] * b[i]), squares = (a) => dot(a, a);
  const squaredDistance = (a, b) => total(a.length, (i) => (a[i] - b[i]) ** 2);
  const positive = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) + 1e-6; // softplus and a floor
  const array = (n, f) => new Float64Array(n).map((_, i) => f(i));
  const flat = (rows) => Float64Array.from(rows.flatMap((r) => Array.from(r)));
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
    return top + Math.log(total(a.length, (i) => Math.exp(a[i] - top)));
  }
  const logMeanExp = (a) => logSumExp(a) - Math.log(a.length); // IWAE_K; the ELBO is mean(a)
  const effectiveSampleSize = (a) => Math.exp(2 * logSumExp(a) - logSumExp(a.map((w) => 2 * w)));
  const standardError = (a, centre = mean(a)) => // of the mean
    Math.sqrt(total(a.length, (i) => (a[i] - centre) ** 2) / (a.length * (a.length - 1)));
  // ---- small matrices
  const row = (a, i, k) => a.subarray(i * k, i * k + k);
  const matrix = (n, m, f) => array(n * m, (at) => f(Math.floor(at / m), at % m));
  const transpose = (a, k) => matrix(k, a.length / k, (i, j) => a[j * k + i]); // A having k columns
  function product(a, b, k, c = new Float64Array((a.length / k) * (b.length / k))) { // C + A B, in place
    const m = b.length / k;
    for (let at = 0; at < a.length; at++) {
      const v = a[at], into = Math.floor(at / k) * m, from = (at % k) * m;
      if (v !== 0) for (let j = 0; j < m; j++) c[into + j] += v * b[from + j]; // behind a ReLU many are 0
    }
    return c;
  }
  const gram = (a, k) => product(transpose(a, k), a, a.length / k); // A'A
  function cholesky(a, n) { // L lower, L L' = a
    const l = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) {
        const rest = a[i * n + j] - dot(row(l, i, n), row(l, j, n)); // of entries that are there
        l[i * n + j] = i === j ? Math.sqrt(rest) : rest / l[j * n + j];
      }
    return l;
  }
  function solveLower(l, b) { // L^-1 b
    const n = b.length, y = new Float64Array(n);
    for (let i = 0; i < n; i++) y[i] = (b[i] - dot(row(l, i, n), y)) / l[i * n + i]; // y ends in zeros till then
    return y;
  }
  function inverse(l, n) { // (L L')^-1 = K K', the rows of K being L^-1's columns
    const k = flat(Array.from({ length: n }, (_, j) => solveLower(l, array(n, (i) => +(i === j)))));
    return product(k, transpose(k, n), n);
  }
  const logDet = (l, n) => 2 * total(n, (i) => Math.log(l[i * n + i])); // of L L'
  function principalAxes(points, count) { // eigenvectors of the points' covariance, the longest axis first
    const k = points[0].length, centre = array(k, (j) => mean(points.map((z) => z[j])));
    let covariance = gram(flat(points.map((z) => centre.map((c, j) => z[j] - c))), k);
    return Array.from({ length: count }, () => {
      let axis = array(k, (j) => 1 / (1 + j)), size;
      for (let round = 0; round < 3000; round++) { // power iteration
        const next = product(covariance, axis, k);
        size = Math.sqrt(squares(next));
        axis = next.map((v) => v / size);
      }
      covariance = covariance.map((v, at) => v - size * axis[Math.floor(at / k)] * axis[at % k]);
      return axis;
    });
  }
  // ---- distributions
  const diagonal = (loc, scale) =>
    ({ loc, tril: matrix(loc.length, loc.length, (i, j) => (i === j ? scale[i] : 0)) });
  const standardNormal = (k) => diagonal(new Float64Array(k), array(k, () => 1));
  const mixture = (logWeights, parts) => ({ logWeights, parts }), alone = (gaussian) => mixture([0], [gaussian]);
  const gaussianLogProb = ({ loc, tril }, z) => -0.5 * (squares(solveLower(tril, loc.map((v, i) => z[i] - v)))
    + logDet(tril, loc.length) + loc.length * LOG_2PI);
  const logProb = ({ logWeights, parts }, z) => logSumExp(parts.map((p, i) => logWeights[i] + gaussianLogProb(p, z)));
  const gaussianSample = ({ loc, tril }, eps) => product(tril, eps, eps.length, loc.slice());
  function sample({ logWeights, parts }, random) {
    let u = random.uniform();
    const part = parts.at(logWeights.findIndex((w) => (u -= Math.exp(w)) <= 0)); // by rounding none: the last
    return gaussianSample(part, random.normals(part.loc.length));
  }
  function klOfGaussians(q, p) { // 1/2 [tr(P^-1 Q) + |m_p - m_q|^2_P - k + log |P| - log |Q|]
    const k = q.loc.length, moved = solveLower(p.tril, q.loc.map((v, i) => v - p.loc[i]));
    const trace = total(k, (j) => squares(solveLower(p.tril, array(k, (i) => q.tril[i * k + j]))));
    return 0.5 * (trace + squares(moved) - k + logDet(p.tril, k) - logDet(q.tril, k));
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
  const activations = (layers, x) => layers.reduce((all, { n, w, b }, l) => { // [input, hidden, ..., output]
    const y = product(all[l], w, n, b.slice());
    return [...all, l < layers.length - 1 ? y.map((v) => Math.max(v, 0)) : y];
  }, [x]);
  function backward(layers, all, slope, into) { // adds to `into`; the slope in the input comes back
    for (let l = layers.length - 1; l >= 0; l--) {
      const { m, w } = layers[l], h = all[l], below = product(w, slope, m);
      product(h, slope, 1, into[l].w);
      product([1], slope, 1, into[l].b);
      slope = l ? below.map((v, i) => (h[i] > 0 ? v : 0)) : below;
    }
    return slope;
  }
  // ---- a VAE: encode, decode, prior, by the names of its parts
  const heads = {
    diagonal: (raw, k) => alone(diagonal(raw.slice(0, k), raw.slice(k).map(positive))),
    full(raw, k) { // mu, then the lower triangle of L row by row
      const entry = (i, j) => raw[k + (i * (i + 1)) / 2 + j];
      const tril = matrix(k, k, (i, j) => (i === j ? positive(entry(i, i)) : i > j ? entry(i, j) : 0));
      return alone({ loc: raw.slice(0, k), tril });
    },
    mixture: (raw, k) => gaussians(raw, k, positive),
  };
  function gaussians(raw, k, toScale) { // logits [n], means [n, k], raw scales [n, k]
    const n = raw.length / (1 + 2 * k), logits = Array.from(raw.slice(0, n)), norm = logSumExp(logits);
    const rows = raw.subarray(n), part = (_, i) => diagonal(row(rows, i, k), row(rows, n + i, k).map(toScale));
    return mixture(logits.map((v) => v - norm), logits.map(part));
  }
  const encode = (model, x) => heads[model.posterior](activations(model.encoder, x).at(-1), model.latents); // q(z|x)
  const decode = (model, z) => activations(model.decoder, z).at(-1); // the mean of p(x|z)
  function unpacked(shipped, sigma) {
    const of = ({ sizes, weights }) => network(sizes, float16(weights));
    const leaves = float16(shipped.prior_leaves), k = shipped.decode.sizes[0];
    const model = { ...shipped, sigma, latents: k, encoder: of(shipped.encode), decoder: of(shipped.decode) };
    const priors = { normal: () => alone(standardNormal(k)), mixture: () => gaussians(leaves, k, Math.exp),
      vamp: () => vampPrior(model, leaves) };
    return Object.assign(model, { priorDistribution: priors[shipped.prior]() });
  }
  function vampPrior(model, inputs) { // the mean of q(z|u) over pseudo-inputs u
    const all = Array.from({ length: inputs.length / 64 }, (_, i) => encode(model, row(inputs, i, 64)));
    const logWeights = all.flatMap((q) => q.logWeights.map((w) => w - Math.log(all.length)));
    return mixture(logWeights, all.flatMap((q) => q.parts));
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
  function inverseM({ weight, mean, variance }) { // M = W'W + variance I
    const k = weight.length / mean.length, m = gram(weight, k).map((v, i) => (i % (k + 1) ? v : v + variance));
    return inverse(cholesky(m, k), k);
  }
  function linearPosterior(params, x) { // N(M^-1 W'(x - mean), variance M^-1)
    const inverse = inverseM(params), r = product(centred(params, x), params.weight, x.length), k = r.length;
    return { loc: product(inverse, r, k), tril: cholesky(inverse.map((v) => v * params.variance), k) };
  }
  function linearLogMarginal(params, x) { // log p(x|z) + log p(z) - log p(z|x), which any z gives
    const q = linearPosterior(params, x), z = q.loc, sigma = Math.sqrt(params.variance);
    return pixelsLogProb(x, linearDecode(params, z), sigma) + gaussianLogProb(standardNormal(z.length), z)
      - gaussianLogProb(q, z);
  }
  const linearDecode = ({ weight, mean }, z) => product(weight, z, z.length, mean.slice());
  function emStep(params, xs) { // E[z|x] and E[zz'|x], then the parameters that are best for these
    const n = xs.length, d = params.mean.length, k = params.weight.length / d, covariance = inverseM(params);
    const r = flat(xs.map((x) => centred(params, x))), z = product(product(r, params.weight, d), covariance, k);
    const second = gram(z, k).map((v, i) => v + n * params.variance * covariance[i]); // the sum of E[zz'|x]
    const cross = product(transpose(r, d), z, n), weight = product(cross, inverse(cholesky(second, k), k), k);
    const residual = squares(r) - 2 * dot(weight, cross) + dot(second, gram(weight, k));
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
    const n = vectors.length / mean.length;
    return { weight: matrix(mean.length, k, (i, j) => vectors[i * n + j] * size[j]), mean, variance };
  }
  function turned({ weight, mean, variance }, [a, b], angle) { // columns a and b of W alone, and W U for W
    const k = weight.length / mean.length, [c, s] = [Math.cos(angle), Math.sin(angle)], u = [c, -s, s, c];
    return { weight: product(matrix(mean.length, 2, (i, j) => weight[i * k + [a, b][j]]), u, 2), mean, variance };
  }
  // ---- q against the posterior in one coordinate, in the posterior's sds: q = N(t, c^2), p = N(0, 1)
  const gapOf = (t, c) => 0.5 * (t * t + c * c - 1) - Math.log(c);
  const gapDensity = (logQ, logP) => // q log (q/p) - q + p, whose integral is KL(q || p)
    Math.max(Math.exp(logQ) * (logQ - logP - 1) + Math.exp(logP), 0);
  const shareThatCounts = (t, c) => // effective sample size of K draws, over K, for large K; 0 if w has no variance
    2 * c * c > 1 ? (Math.sqrt(2 * c * c - 1) / (c * c)) * Math.exp((-t * t) / (2 * c * c - 1)) : 0;
  // E[log p(x) - IWAE_K] = int_0^inf (E exp(-s w/K)^K - exp(-s)) / s ds, with w scaled to mean 1
  function iwaeGap(t, c, samples) {
    const reach = 9 * Math.max(1, 1 / c) + Math.abs(t) / c, count = Math.ceil(reach / 0.01), step = reach / count;
    const draws = array(2 * count + 1, (i) => (i - count) * step);
    const p = draws.map((e) => step * Math.exp(-0.5 * (e * e + LOG_2PI)));
    const w = draws.map((e) => c * Math.exp((e * e - (t + c * e) ** 2) / 2));
    let area = 0;
    for (let u = -45, less = 0; u < 400 && less < 1 - 1e-13; u += 0.25) {
      less = -total(w.length, (i) => p[i] * Math.expm1((-Math.exp(u) / samples) * w[i]));
      area += 0.25 * (Math.exp(samples * Math.log1p(-Math.min(less, 1))) - Math.exp(-Math.exp(u)));
    }
    return area;
  }
  // two gradients of the ELBO in t, k coordinates: exactly -t; `f` is ELBO's integrand less log p(x)
  const integrand = (t, c, eps) =>
    total(t.length, (i) => (eps[i] ** 2 - (t[i] + c * eps[i]) ** 2) / 2 + Math.log(c));
  const expectedIntegrand = (t, c) => -total(t.length, (i) => gapOf(t[i], c));
  const pathwiseGradient = (t, c, eps) => eps.map((e, i) => -(t[i] + c * e));
  const scoreGradient = (t, c, eps, baseline) => eps.map((e) => ((integrand(t, c, eps) - baseline) * e) / c);
  const pathwiseVariance = (t, c) => t.length * c * c; // in all, of one draw, as the next one
  function scoreVariance(t, c, baseline) {
    const k = t.length, b = (1 - c * c) / 2, t2 = squares(t), a = k * Math.log(c) - t2 / 2 - baseline;
    return (a * a * k + 2 * a * b * k * (k + 2) + b * b * k * (k + 2) * (k + 4)
      + c * c * t2 * (k + 2)) / (c * c) - t2;
  }
  // ---- q = N(m, L L') against a posterior p of precision P
  const diagonalLoss = (precision, k) => 0.5 * (total(k, (i) => Math.log(precision[i * (k + 1)]))
    - logDet(cholesky(precision, k), k)); // of the best diagonal q
  const correlation = ({ tril }) => tril[2] / Math.hypot(tril[2], tril[3]); // of two coordinates
  function klStep(q, p, rate, tilts) { // down KL(q || p), whose slopes are P (m - m_p) and P L - diag(1 / L)
    const k = q.loc.length, precision = inverse(p.tril, k), slope = product(precision, q.tril, k);
    for (let i = 0; i < k; i++) slope[i * (k + 1)] -= 1 / q.tril[i * (k + 1)];
    const loc = product(precision, q.loc.map((v, i) => rate * (p.loc[i] - v)), k, q.loc.slice());
    const moved = q.tril.map((l, at) => l - rate * slope[at]);
    return { loc, tril: matrix(k, k, (i, j) => (i === j || (tilts && i > j) ? moved[i * k + j] : 0)) };
  }
  // ---- training: the ELBO of N(mu, diag s^2) against N(0, I), its slope, and Adam
  const zeros = (layers) => layers.map(({ w, b }) => ({ w: w.map(() => 0), b: b.map(() => 0) }));
  function elboSlope({ encoder, decoder, sigma, latents: k }, xs, eps, beta) {
    const slope = { encoder: zeros(encoder), decoder: zeros(decoder), distortion: 0, rate: 0 };
    const n = xs.length, v = sigma * sigma;
    xs.forEach((x, at) => { // of the mean over rows of distortion + beta rate
      const up = activations(encoder, x), raw = up[encoder.length];
      const s = raw.slice(k).map(positive), z = array(k, (i) => raw[i] + s[i] * eps[at][i]);
      const down = activations(decoder, z), image = down[decoder.length];
      slope.distortion -= pixelsLogProb(x, image, sigma) / n;
      slope.rate += klOfGaussians(diagonal(raw.slice(0, k), s), standardNormal(k)) / n;
      const below = backward(decoder, down, image.map((y, i) => (y - x[i]) / (v * n)), slope.decoder);
      backward(encoder, up, array(2 * k, (i) => i < k ? below[i] + (beta * raw[i]) / n
        : (below[i - k] * eps[at][i - k] + (beta * (s[i - k] - 1 / s[i - k])) / n)
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
  return { sum, mean, dot, array, randomness, bytes, float16, float32, logSumExp, logMeanExp, effectiveSampleSize,
    standardError, inverse, principalAxes, diagonal, standardNormal, alone, gaussianLogProb, logProb, gaussianSample,
    sample, klOfGaussians, squaredDistance, pixelsLogProb, freshNetwork, encode, decode, unpacked, logWeight, gridOf,
    onGrid, linearPosterior, linearLogMarginal, linearDecode, emStep, rateDistortion, waterFilled, turned, gapOf,
    gapDensity, shareThatCounts, iwaeGap, integrand, expectedIntegrand, pathwiseGradient, pathwiseVariance,
    scoreGradient, scoreVariance, diagonalLoss, correlation, klStep, elboSlope, freshAdam, adam, nearestDistance };
})();
if (typeof module !== "undefined") module.exports = mathematics;
