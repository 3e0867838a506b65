"""Quantizers of the papers: their codes by enumeration, their Jacobians by the papers' formulas."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.cluster.vq import kmeans2
from scipy.special import softmax

from jaxvae import Categorical, Constant, Normal, batched, elbo, init_state, train_step
from jaxvae.models.quantization import (
    BSQ,
    FSQ,
    IBQ,
    LFQ,
    VQVAE,
    Codebook,
    Grouped,
    MaskedCodes,
    Projected,
    Quantized,
    ResidualCodebooks,
    ResidualFSQ,
    Rotation,
    SimVQ,
    UnitCodes,
    code_counts,
    cosine,
    ema_codebook,
    ema_step,
    entropy_penalty,
    kmeans,
    nearest,
    orthogonal_penalty,
    perplexity,
    quantize,
    reset_dead_codes,
    rotation_trick,
    vq,
)
from tests.common import close

RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(5, 3))
DEEP = RNG.normal(size=(2, 5, 3))
WEIGHT = RNG.normal(size=(4, 3))
FROZEN = RNG.normal(size=(5, 4))
DOWN, UP = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 3))
Z = RNG.normal(size=(7, 3))
WIDE = RNG.normal(size=(7, 4))


def key() -> Any:
    return jax.random.key(0)


def alike(found, expected) -> bool:
    """Trees of the same structure with leaves that are close."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    return all(map(close, jax.tree.leaves(found), jax.tree.leaves(expected)))


def linear(w, z):
    return w @ z


def book(codes: Any = CODES) -> Any:
    return Codebook(np.asarray(codes), np.ones(np.shape(codes)[:-1]), np.asarray(codes))


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def jacobian(function, at):
    return np.asarray(jax.jit(jax.jacrev(function))(jnp.asarray(at)))


QUANTIZERS: dict[str, tuple[Any, Any]] = {  # and vectors for each
    "simvq": (SimVQ(FROZEN, WEIGHT), Z),
    "unit codes": (UnitCodes(book()), Z),
    "cosine": (cosine(book()), Z),
    "rotated, cosine, of a linear map": (
        Projected(
            Rotation(UnitCodes(SimVQ(FROZEN, WEIGHT))), Partial(linear, np.diag([1.0, 2.0, 3.0]))
        ),
        Z,
    ),
    "index backpropagation": (IBQ(book()), Z),
    "low-dimensional": (Projected(book(), Partial(linear, DOWN), Partial(linear, UP)), WIDE),
    "residual, of linear maps": (ResidualCodebooks(SimVQ(DEEP, np.stack([np.eye(3)] * 2))), Z),
    "grouped residual": (
        Grouped(ResidualCodebooks(book(RNG.normal(size=(2, 3, 5, 2))))),
        WIDE,
    ),
    "fsq, the paper's": (FSQ((4, 5, 2), shifted=True), 2.0 * Z),
    "residual fsq": (ResidualFSQ((3, 4, 5), depth=3), Z),
    "lfq": (LFQ(3), Z),
    "bsq": (BSQ(3), Z),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", QUANTIZERS)
def test_laws(name, x64):
    """The index names the code, a map is a loop, and the gradients are finite, also at 0."""
    quantizer, zs = QUANTIZERS[name]
    mapped = jax.jit(lambda q, z: jax.vmap(q)(z))(quantizer, zs)
    assert isinstance(mapped, Quantized)
    looked_up = jax.jit(lambda q, k: jax.vmap(q.lookup)(k))(quantizer, mapped.indices)
    assert close(looked_up, mapped.code)
    one = jax.jit(lambda q, z: q(z))(quantizer, zs[2])
    for a, b in zip(*map(jax.tree.leaves, (one, mapped)), strict=True):
        assert close(a, np.asarray(b)[2])
    moved = jax.jit(jax.grad(lambda q, z: jnp.sum(q(z).code ** 2) + q(z).codebook, (0, 1)))
    gradients = moved(jax.tree.map(jnp.asarray, quantizer), jnp.asarray(0.0 * zs[2]))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def turn(a, b):
    """The rotation of the plane of two unit vectors that takes a to b, the identity across it."""
    cos = a @ b
    c = unit(b - cos * a)
    sin = c @ b
    plane = np.outer(a, a) + np.outer(c, c)
    return np.eye(len(a)) + sin * (np.outer(c, a) - np.outer(a, c)) + (cos - 1.0) * plane


@pytest.mark.thorough
def test_the_rotation_trick_rotates(x64):
    e, z = CODES[0], Z[0]
    expected = np.linalg.norm(e) / np.linalg.norm(z) * turn(unit(z), unit(e))
    assert close(jacobian(partial(rotation_trick, e), z), expected)
    assert close(expected @ z, e)
    assert np.array_equal(jax.jit(rotation_trick)(e, z), e)
    assert close(jacobian(lambda e: rotation_trick(e, z), e), np.zeros((3, 3)))
    for to, at in ((-z, z), (-2.0 * z, z), (0.0 * e, z), (e, 0.0 * z), (0.0 * e, 0.0 * z)):
        assert close(jacobian(partial(rotation_trick, to), at), np.eye(3))
    rotated = Rotation(book())
    k = int(np.argmin(np.sum((Z[1] - CODES) ** 2, -1)))
    expected = np.linalg.norm(CODES[k]) / np.linalg.norm(Z[1]) * turn(unit(Z[1]), unit(CODES[k]))
    assert close(jacobian(lambda z: rotated(z).code, Z[1]), expected)
    assert int(rotated(jnp.asarray(Z[1])).indices) == k
    to_codes = jacobian(lambda codes: Rotation(book()._replace(codes=codes))(Z[1]).code, CODES)
    assert close(to_codes, np.zeros((3, 5, 3)))


def test_a_linear_map_of_frozen_codes(x64):
    """d|sg(z) - c_k W|^2 / dW = -2 c_k (z - e)', and nothing reaches c."""
    codes, z = FROZEN @ WEIGHT, jnp.asarray(Z[0])
    k = np.argmin(np.sum((Z[0] - codes) ** 2, -1))

    def of(part, frozen, weight, z):
        return getattr(SimVQ(frozen, weight)(z), part)

    def gradients(part):
        to = jax.jit(jax.grad(partial(of, part), (0, 1, 2)))
        return map(np.asarray, to(jnp.asarray(FROZEN), jnp.asarray(WEIGHT), z))

    frozen, weight, to_z = gradients("codebook")
    assert close(weight, -2.0 * np.outer(FROZEN[k], Z[0] - codes[k]))
    assert close(frozen, 0.0 * FROZEN)
    assert close(to_z, np.zeros(3))
    frozen, weight, to_z = gradients("commitment")
    assert close(weight, 0.0 * WEIGHT)
    assert close(to_z, 2.0 * (Z[0] - codes[k]))
    assert close(jacobian(lambda z: of("code", FROZEN, WEIGHT, z), Z[0]), np.eye(3))
    constant = SimVQ(Constant(FROZEN), WEIGHT)
    assert len(jax.tree.leaves(constant)) == 1
    assert alike(constant(z), SimVQ(FROZEN, WEIGHT)(z))


def test_cosine_takes_the_least_angle(x64):
    quantizer = cosine(book())
    q = jax.jit(jax.vmap(quantizer))(Z)
    k = np.argmax(unit(Z) @ unit(CODES).T, 1)
    assert np.array_equal(q.indices, k)
    assert not np.array_equal(k, np.argmin(np.sum((Z[:, None] - CODES) ** 2, -1), 1))
    assert close(q.code, unit(CODES)[k])
    assert close(q.commitment, 2.0 - 2.0 * np.max(unit(Z) @ unit(CODES).T, 1))
    u, size = unit(Z[0]), np.linalg.norm(Z[0])
    across = (np.eye(3) - np.outer(u, u)) / size
    assert close(jacobian(lambda z: quantizer(z).code, Z[0]), across)
    to_codes = jacobian(lambda c: cosine(book()._replace(codes=c))(Z[0]).codebook, CODES)
    e, size = unit(CODES[k[0]]), np.linalg.norm(CODES[k[0]])
    expected = np.zeros_like(CODES)
    expected[k[0]] = -2.0 * (np.eye(3) - np.outer(e, e)) @ (u - e) / size
    assert close(to_codes, expected)


def test_index_backpropagation(x64):
    """By z the covariance of the codes under the softmax; by every code, used or not."""
    z, codes = Z[0], CODES
    p = softmax(codes @ z)
    mean = p @ codes
    k = int(np.argmax(codes @ z))
    q = jax.jit(lambda z: IBQ(book())(z))(z)
    assert int(q.indices) == k
    assert np.array_equal(q.code, codes[k])
    covariance = codes.T @ (p[:, None] * codes) - np.outer(mean, mean)
    assert close(jacobian(lambda z: IBQ(book())(z).code, z), covariance)
    # d code_j / d e_ki = [k is taken] [i = j] + p_k (e_kj - mean_j) z_i
    expected = np.einsum("k,ij->jki", np.eye(5)[k], np.eye(3))
    expected += np.einsum("k,kj,i->jki", p, codes - mean, z)
    found = jacobian(lambda c: IBQ(book()._replace(codes=c))(z).code, codes)
    assert close(found, expected)
    assert np.all(np.abs(found).max((0, 2)) > 1e-6)
    for part, to_z in (("commitment", 2.0 * (z - codes[k])), ("codebook", np.zeros(3))):
        assert close(jacobian(lambda z, part=part: getattr(IBQ(book())(z), part), z), to_z)


CORNERS = np.array(list(product([-1.0, 1.0], repeat=3)))


def test_the_corners_of_a_cube(x64):
    q = jax.jit(jax.vmap(LFQ(3)))(Z)
    assert np.array_equal(jax.jit(jax.vmap(LFQ(3).lookup))(np.arange(8)), CORNERS)
    assert np.array_equal(q.indices, np.argmin(np.sum((Z[:, None] - CORNERS) ** 2, -1), 1))
    assert close(q.commitment, np.min(np.sum((Z[:, None] - CORNERS) ** 2, -1), 1))
    assert close(jacobian(lambda z: LFQ(3)(z).code, Z[0]), np.eye(3))
    to_z = jacobian(lambda z: LFQ(3)(z).commitment, Z[0])
    assert close(to_z, 2.0 * (Z[0] - np.sign(Z[0])))
    assert np.array_equal(LFQ(3)(jnp.zeros(3)).code, -np.ones(3))


def test_the_corners_on_the_sphere(x64):
    q = jax.jit(jax.vmap(BSQ(3)))(Z)
    corners, u = CORNERS / np.sqrt(3.0), unit(Z)
    assert close(jax.jit(jax.vmap(BSQ(3).lookup))(np.arange(8)), corners)
    assert np.array_equal(q.indices, np.argmax(u @ corners.T, 1))
    assert close(q.commitment, np.min(np.sum((u[:, None] - corners) ** 2, -1), 1))
    across = (np.eye(3) - np.outer(u[0], u[0])) / np.linalg.norm(Z[0])
    assert close(jacobian(lambda z: BSQ(3)(z).code, Z[0]), across)
    # the paper's bits: sigmoid(2 tau u_i / sqrt d), at temperature 2 / tau
    tau = 5.0
    bits = jax.nn.softmax(q.logits / (2.0 / tau))[..., 1]
    assert close(bits, 1.0 / (1.0 + np.exp(-2.0 * tau * u / np.sqrt(3.0))))


def entropy(p):
    return -np.sum(p * np.log(p))


@pytest.mark.parametrize("factorized", [True, False])
def test_entropies_of_bits_are_those_of_all_corners(factorized, x64):
    """The soft assignment to all 2^d corners, enumerated: two examples of three vectors."""
    zs, temperature, diversity = Z[:6].reshape(2, 3, 3), 0.7, 1.3
    each = softmax(-np.sum((Z[:6, None] - CORNERS) ** 2, -1) / temperature, axis=1)
    bits = np.stack([each @ (CORNERS[:, i] > 0) for i in range(3)], 1).mean(0)
    apart = sum(entropy(np.array([b, 1.0 - b])) for b in bits)
    together = apart if factorized else entropy(each.mean(0))
    assert entropy(each.mean(0)) <= apart + 1e-12
    expected = np.mean([sum(map(entropy, e)) for e in each.reshape(2, 3, 8)])

    def objective(model, key, z):
        penalty = partial(entropy_penalty, temperature=temperature, factorized=factorized)
        return penalty(jax.vmap(LFQ(3))(z), diversity=diversity), None

    found, _ = jax.jit(batched(objective))(None, key(), zs)
    assert close(found, expected - 3.0 * diversity * together)


def test_the_gradient_of_entropies_and_vectors_that_are_not_there(x64):
    """By each vector and code, against the formula of the whole batch at once; two are hidden."""
    zs, there = jnp.asarray(Z[:6].reshape(2, 3, 3)), np.array([[1, 1, 1], [1, 0, 0]]).astype(bool)

    def objective(codes, key, at):
        z, mask = at
        q = jax.vmap(book()._replace(codes=codes))(z)
        q = q._replace(indices=jnp.where(mask, q.indices, -1))
        return entropy_penalty(q, temperature=0.8, diversity=0.6), None

    def by_hand(codes, zs):
        z = zs.reshape(6, 3)[np.array([0, 1, 2, 3])]
        p = jax.nn.softmax(-jnp.sum((z[:, None] - codes[None]) ** 2, -1) / 0.8)
        mean = jnp.mean(p, 0)
        sure = -jnp.sum(p * jnp.log(p)) + 0.6 * 4 * jnp.sum(mean * jnp.log(mean))
        return sure / 2  # the mean of two examples

    def of_batch(codes, zs):
        return batched(objective)(codes, key(), (zs, there))[0]

    for function in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        found, expected = (
            jax.jit(function(f))(jnp.asarray(CODES), zs) for f in (of_batch, by_hand)
        )
        assert alike(found, expected)


def test_sure_vectors_have_a_gradient():
    """A soft assignment that is 0 in floats, for one vector and for all."""

    def objective(codes, key, z):
        q = jax.vmap(partial(nearest, codes))(z)
        return entropy_penalty(q, temperature=1e-3), None

    zs = jnp.zeros((2, 3, 1))
    codes = jnp.array([[0.0], [100.0]])
    found = jax.jit(jax.grad(lambda codes: batched(objective)(codes, key(), zs)[0]))(codes)
    assert np.all(np.isfinite(found))


def test_angles_of_codes(x64):
    e = unit(CODES)
    expected = np.sum((e @ e.T - np.eye(5)) ** 2) / 25
    assert close(jax.jit(orthogonal_penalty)(CODES), expected)


def test_low_dimensional_codes(x64):
    """code = U e, e of D z: backwards U D; and moving averages see D z."""
    quantizer = Projected(book(), Partial(linear, DOWN), Partial(linear, UP))
    low = WIDE @ DOWN.T
    k = np.argmin(np.sum((low[:, None] - CODES) ** 2, -1), 1)
    q = jax.jit(jax.vmap(quantizer))(WIDE)
    assert np.array_equal(q.indices, k)
    assert close(q.code, CODES[k] @ UP.T)
    assert close(q.commitment, np.sum((low - CODES[k]) ** 2, -1))
    assert close(jacobian(lambda z: quantizer(z).code, WIDE[0]), UP @ DOWN)
    moved = jax.jit(ema_codebook)(quantizer, WIDE, k, decay=0.5)
    assert alike(moved.quantizer, jax.jit(ema_codebook)(book(), low, k, decay=0.5))
    rotated = Rotation(cosine(book()))
    moved = jax.jit(ema_codebook)(rotated, Z, k, decay=0.5)
    alone = jax.jit(ema_codebook)(book(), unit(Z), k, decay=0.5)
    assert alike(moved.quantizer.quantizer.quantizer, alone)


@pytest.mark.thorough
def test_groups_are_quantizers_side_by_side(x64):
    codes = RNG.normal(size=(2, 3, 5, 2))
    grouped, z = Grouped(ResidualCodebooks(book(codes))), WIDE
    q = jax.jit(jax.vmap(grouped))(z)
    assert q.indices.shape == (7, 2, 3)
    moved = jax.jit(ema_codebook)(grouped, z, q.indices, decay=0.5).quantizers.codebooks
    dead = Grouped(ResidualCodebooks(book(codes)._replace(counts=np.zeros((2, 3, 5)))))
    drawn = jax.jit(reset_dead_codes)(key(), dead, z, q.indices, threshold=1.0).quantizers.codebooks
    for g in range(2):
        alone, part = ResidualCodebooks(book(codes[g])), z[:, 2 * g : 2 * g + 2]
        p = jax.jit(jax.vmap(alone))(part)
        assert np.array_equal(q.indices[:, g], p.indices)
        assert close(q.code[:, 2 * g : 2 * g + 2], p.code)
        assert close(q.logits[:, g], p.logits)
        of_group = jax.tree.map(lambda leaf, g=g: leaf[g], moved)
        expected = jax.jit(ema_codebook)(alone, part, p.indices, decay=0.5).codebooks
        assert alike(of_group, expected)
        gaps = np.sum((np.asarray(drawn.codes)[g, 0][:, None] - part) ** 2, -1)
        assert np.all(gaps.min(1) == 0.0)
    total = np.sum((z - q.code) ** 2, -1)
    last = jax.jit(jax.vmap(lambda z: grouped(z).commitment))(z)
    assert np.all(last >= total - 1e-12)  # of every stage, the last one's included
    # each group draws rows of its own: by chance one in seven is the same
    parts = np.asarray(z).reshape(7, 2, 2).swapaxes(0, 1)
    gaps = np.sum((np.asarray(drawn.codes)[:, 0, :, None] - parts[:, None]) ** 2, -1)
    assert not np.array_equal(*np.argmin(gaps, -1))
    assert close(jacobian(lambda z: grouped(z).code, z[0]), np.eye(4))


def paper_fsq(z, levels):
    """Mentzer et al. 2023, appendix A.1, in NumPy."""
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(z + np.arctanh(offset / half)) * half - offset
    return np.round(bounded) / (levels // 2)


def test_even_levels_of_the_paper(x64):
    levels = np.array([2, 3, 4, 5, 8])
    z = np.concatenate([3.0 * RNG.normal(size=(200, 5)), np.full((1, 5), 50.0), np.zeros((1, 5))])
    z = np.concatenate([z, np.full((1, 5), -50.0)])
    quantizer = FSQ(tuple(map(int, levels)), shifted=True)
    q = jax.jit(jax.vmap(quantizer))(z)
    assert close(q.code, paper_fsq(z, levels))
    assert close(q.code[-2], np.zeros(5))
    assert close(q.code[-1], -np.ones(5))
    assert close(q.code[-3], 1.0 - np.where(levels % 2, 0.0, 2.0 / levels))
    assert close(jax.jit(jax.vmap(quantizer.lookup))(q.indices), q.code)
    every = jax.jit(jax.vmap(quantizer.lookup))(np.arange(960))
    assert len(np.unique(np.round(every, 9), axis=0)) == 960
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    slope = half * (1.0 - np.tanh(z[0] + np.arctanh(offset / half)) ** 2) / (levels // 2)
    assert close(jacobian(lambda z: quantizer(z).code, z[0]), np.diag(slope))


def test_residual_finite_scalars(x64):
    levels = np.array([3, 4, 5])
    y, rest, expected = np.tanh(Z), np.tanh(Z), 0.0
    for depth in (1, 2, 3):
        quantizer = ResidualFSQ((3, 4, 5), depth=depth)
        q = jax.jit(jax.vmap(quantizer))(Z)
        scale = (levels - 1.0) ** (1 - depth)
        e = scale * (2.0 * np.round((rest / scale + 1.0) / 2.0 * (levels - 1)) / (levels - 1) - 1.0)
        rest, expected = rest - e, expected + e
        assert close(q.code, expected)
        assert np.all(np.abs(y - q.code) <= (levels - 1.0) ** -depth)
        assert q.indices.shape == (7, depth)
        assert close(jax.jit(jax.vmap(quantizer.lookup))(q.indices), q.code)
    assert close(jacobian(lambda z: quantizer(z).code, Z[0]), np.diag(1.0 - y[0] ** 2))
    alone = jax.jit(jax.vmap(ResidualFSQ((3, 4, 5), depth=1)))(Z)
    plain = jax.jit(jax.vmap(FSQ((3, 4, 5))))(Z)
    assert close(alone.code, plain.code)
    assert np.array_equal(alone.indices[:, 0], plain.indices)


def test_residuals_of_any_codebook(x64):
    quantizer = ResidualCodebooks(SimVQ(DEEP, np.stack([2.0 * np.eye(3)] * 2)))
    plain = ResidualCodebooks(book(2.0 * DEEP))
    assert alike(jax.jit(jax.vmap(quantizer))(Z), jax.jit(jax.vmap(plain))(Z))


def test_k_means_of_scipy(x64):
    z = np.concatenate([RNG.normal(loc=c, size=(30, 2)) for c in (-2.0, 0.0, 2.0)])
    start = np.asarray(jax.random.choice(key(), z, (4,), replace=False))
    for steps in (1, 6):
        expected, _ = kmeans2(z, start, iter=steps, minit="matrix")
        assert close(kmeans(key(), z, num_codes=4, steps=steps), expected)
    lonely = kmeans(key(), jnp.array([[3.0], [3.0], [5.0]]), num_codes=3)
    assert sorted(np.ravel(lonely).tolist()) == [3.0, 3.0, 5.0]


def hidden_vqvae() -> Any:
    """x [4] with NaN where nothing is: a vector for each number."""

    def encoder(w, x):
        return w * jnp.nan_to_num(x)[:, None], ~jnp.isnan(x)

    def decoder(v, codes):
        return Seen(v * codes[:, 0])

    prior = MaskedCodes(Categorical(np.sin(np.arange(12.0)).reshape(4, 3)))
    codes = np.array([[-1.0], [0.2], [1.5]])
    return VQVAE(Partial(encoder, 0.9), book(codes), Partial(decoder, 1.1), prior)


@jax.tree_util.register_pytree_node_class
class Seen:
    """N(loc, 1) of the numbers that are not NaN."""

    def __init__(self, loc):
        self.loc = loc

    def sample(self, key):
        return self.loc + jax.random.normal(key, self.loc.shape)

    def log_prob(self, x):
        there = ~jnp.isnan(x)
        gap = jnp.where(there, x, self.loc) - self.loc
        return -0.5 * jnp.sum(gap**2 + jnp.where(there, np.log(2.0 * np.pi), 0.0))

    def tree_flatten(self):
        return (self.loc,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        new = object.__new__(cls)
        new.loc = children[0]
        return new


@pytest.mark.thorough
def test_hidden_vectors_cost_nothing(x64):
    """The objective, and its gradient, of four numbers of which two are there, by hand."""
    model, x = hidden_vqvae(), jnp.array([0.7, jnp.nan, -1.3, jnp.nan])
    codes = np.array([-1.0, 0.2, 1.5])
    seen, places = np.array([0.7, -1.3]), np.array([0, 2])
    z = 0.9 * seen
    k = np.argmin(np.abs(z[:, None] - codes), 1)
    e = codes[k]
    log_p = np.log(softmax(np.sin(np.arange(12.0)).reshape(4, 3), axis=1))
    distortion = np.sum(0.5 * (seen - 1.1 * e) ** 2 + 0.5 * np.log(2.0 * np.pi))
    bound, terms = jax.jit(vq)(model, key(), x, commitment=0.3, codebook=0.5)
    assert terms.indices.tolist() == [k[0], -1, k[1], -1]
    assert close(terms.distortion, distortion)
    assert close(terms.rate, -np.sum(log_p[places, k]))
    assert close(terms.error, np.sum((z - e) ** 2))
    assert close(bound, -(terms.distortion + terms.rate + 0.8 * terms.error))
    code = jax.jit(lambda model, x: quantize(model, x)[1].code)(model, x)
    assert close(code[:, 0], np.array([e[0], 0.0, e[1], 0.0]))
    decoded = jax.jit(lambda model, k: model.decode(k).loc)(model, terms.indices)
    assert close(decoded, 1.1 * np.array([e[0], 0.0, e[1], 0.0]))
    of_elbo, halves = jax.jit(elbo)(model, key(), x)
    assert alike(tuple(halves), (terms.distortion, terms.rate))
    assert close(of_elbo, -(terms.distortion + terms.rate))
    g = jax.jit(jax.grad(lambda m: vq(m, key(), x, commitment=0.3, codebook=0.5)[0]))(model)
    into_z = 1.1 * (seen - 1.1 * e) - 0.6 * (z - e)
    assert close(g.encoder.args[0], np.sum(into_z * seen))
    to_codes = np.zeros(3)
    np.add.at(to_codes, k, z - e)
    assert close(np.asarray(g.quantizer.codes)[:, 0], to_codes)
    for leaf in jax.tree.leaves(g):
        assert np.all(np.isfinite(leaf))
    # what is seen of the codes of a residual quantizer, likewise
    deep = ResidualCodebooks(book(RNG.normal(size=(2, 3, 1))))
    prior = MaskedCodes(Categorical(np.zeros((4, 2, 3))))
    _, terms = jax.jit(vq)(model._replace(quantizer=deep, prior=prior), key(), x)
    assert close(terms.rate, 4 * np.log(3.0))
    assert np.asarray(terms.indices)[[1, 3]].tolist() == [[-1, -1]] * 2


@pytest.mark.thorough
def test_hidden_vectors_move_nothing(x64):
    z, indices = np.array([[2.0], [1e6], [4.0], [7.0]]), np.array([0, -1, 0, 2])
    there = indices >= 0
    for quantizer in (book(np.ones((3, 1))), ResidualCodebooks(book(np.ones((2, 3, 1))))):
        deep = isinstance(quantizer, ResidualCodebooks)
        k = np.stack([indices] * 2, 1) if deep else indices
        moved, alone = (
            jax.jit(ema_codebook)(quantizer, z[of], k[of], decay=0.9) for of in (slice(None), there)
        )
        assert alike(moved, alone)
    dead = book(np.zeros((50, 1)))._replace(counts=np.zeros(50))
    drawn = jax.jit(reset_dead_codes)(key(), dead, z, indices, threshold=1.0)
    assert {*np.ravel(drawn.codes).tolist()} == {2.0, 4.0, 7.0}
    none = jax.jit(reset_dead_codes)(key(), dead, z, np.full(4, -1), threshold=1.0)
    assert alike(none, dead)
    counts = jax.jit(partial(code_counts, num_codes=4))(np.array([[0, -1], [3, 0]]))
    assert counts.tolist() == [2, 0, 0, 1]
    assert float(perplexity(counts)) == pytest.approx(3.0 / 2.0 ** (2.0 / 3.0))


@pytest.mark.thorough
def test_a_penalty_is_subtracted(x64):
    model, x = hidden_vqvae(), jnp.array([0.7, 0.1, -1.3, 0.4])

    def charged(quantizer, z, q):
        return orthogonal_penalty(quantizer.codes) + 2.0 * jnp.sum((z - q.code) ** 2)

    bound, terms = jax.jit(partial(vq, penalty=charged))(model, key(), x)
    plain, _ = jax.jit(vq)(model, key(), x)
    assert close(bound, plain - orthogonal_penalty(model.quantizer.codes) - 2.0 * terms.error)


@pytest.mark.thorough
def test_averages_in_a_quantizer_that_trains(x64):
    """The codes follow D z of before the step, and D and U take the optimiser's step."""

    def decoder(codes):
        return Normal(codes[0], 1.0)

    down, up = jnp.asarray(DOWN), jnp.asarray(UP)
    projected = Projected(book(), Partial(linear, down), Partial(linear, up))
    prior = Constant(Categorical(np.zeros((1, 5))))
    model: Any = VQVAE(Partial(lambda x: x[None]), projected, Partial(decoder), prior)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    start = init_state(model, optimizer)
    state, _ = jax.jit(ema_step(vq, optimizer, decay=0.5))(start, key(), WIDE)
    plain, _ = jax.jit(train_step(partial(vq, codebook=0.0), optimizer))(start, key(), WIDE)
    for part in ("down", "up"):
        found, expected = (getattr(s.model.quantizer, part).args[0] for s in (state, plain))
        assert close(found, expected)
        assert not close(found, getattr(projected, part).args[0])
    low = WIDE @ DOWN.T
    k = np.argmin(np.sum((low[:, None] - CODES) ** 2, -1), 1)
    assert alike(state.model.quantizer.quantizer, ema_codebook(book(), low, k, decay=0.5))


NONE: Any = None
F32 = jnp.zeros(3, jnp.float32)
BAD: Any = [
    (lambda: nearest(F32, F32), "codes has shape"),
    (lambda: rotation_trick(F32, F32[:2]), "e has shape"),
    (lambda: Rotation(NONE)(F32), "quantizer is None"),
    (lambda: IBQ(FSQ((3, 3)))(F32), "expected one with codes"),
    (lambda: Projected(NONE)(F32), "quantizer is None"),
    (lambda: cosine(LFQ(3)), "expected one with codes"),
    (lambda: Grouped(book(np.zeros((2, 5, 1), np.float32)))(F32), "multiple of 2"),
    (lambda: Grouped(book(np.zeros((2, 5, 1)))).lookup(jnp.zeros(3, int)), "index has (3,)"),
    (lambda: ResidualFSQ((2, 3), 2)(F32[:2]), "at least 3"),
    (lambda: ResidualFSQ((3,), 0)(F32[:1]), "depth is 0"),
    (lambda: LFQ(2)(F32), "z has shape"),
    (lambda: LFQ(31)(jnp.zeros(31)), "at most 30"),
    (lambda: BSQ(0)(F32), "bits is 0"),
    (lambda: entropy_penalty(FSQ((3,))(F32[:1])), "logits is None"),
    (lambda: orthogonal_penalty(F32), "codes has shape"),
    (lambda: kmeans(key(), jnp.zeros((2, 1)), num_codes=3), "num_codes is 3"),
    (lambda: kmeans(key(), F32, num_codes=3), "z has shape"),
    (lambda: ema_codebook(LFQ(2), jnp.zeros((4, 2)), jnp.zeros(4, int), decay=0.9), "an LFQ"),
    (lambda: code_counts(F32, num_codes=3), "indices has dtype"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("call", "says"), BAD)
def test_a_bad_argument_is_named(call, says):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
