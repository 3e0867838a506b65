"""Discrete codes: nearest neighbours, gradients straight through, k-means, and a true bound."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial
from scipy.special import logsumexp

from jaxvae import Categorical, Constant, Normal, elbo, generate, init_state, train_step
from jaxvae.models.quantization import (
    FSQ,
    VQVAE,
    Codebook,
    Delta,
    ResidualCodebooks,
    ema_codebook,
    ema_step,
    init_codebook,
    perplexity,
    reset_dead_codes,
    straight_through_value,
    vq,
)
from tests.common import close

RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(2, 5, 3))  # two codebooks of five codes in three dimensions
Z = RNG.normal(size=(7, 3))
N, K = 2, 3  # the small VQ-VAE's codes an example, and the codebook's size


def codebook_of(codes) -> Any:
    """`init_codebook` of codes [..., K, d], one program a shape."""
    return jax.tree.map(np.asarray, INIT[np.ndim(codes)](codes))


INIT = {2: jax.jit(init_codebook), 3: jax.jit(jax.vmap(init_codebook))}
EMA = jax.jit(ema_codebook)
RESET = jax.jit(reset_dead_codes)


def quantizers() -> Any:
    return (
        codebook_of(CODES[0]),
        ResidualCodebooks(codebook_of(CODES)),
        FSQ((3, 4, 2)),
    )


def small_vqvae(logits=None) -> Any:
    """x [2] -> z = W x + b in [2, 1], 3 codes in one dimension, p(x|e) = N(V e, 1)."""
    encoder = Partial(
        lambda w, x: (w @ x)[:, None], RNG.normal(size=(N, 2)).astype(jnp.result_type(float))
    )
    decoder = Partial(
        lambda v, e: Normal(v @ e[:, 0], 1.0),
        RNG.normal(size=(2, N)).astype(jnp.result_type(float)),
    )
    prior = Constant(Categorical(np.zeros((N, K)))) if logits is None else Categorical(logits)
    return VQVAE(encoder, codebook_of(np.array([[-1.0], [0.2], [1.5]])), decoder, prior)


def test_a_vector_goes_to_the_nearest_code(x64):
    codebook, residual, _ = quantizers()
    z = jnp.asarray(Z)
    q, r = jax.jit(jax.vmap(codebook))(z), jax.jit(jax.vmap(residual))(z)
    first = np.argmin(np.sum((Z[:, None] - CODES[0]) ** 2, -1), 1)
    rest = Z - CODES[0][first]
    second = np.argmin(np.sum((rest[:, None] - CODES[1]) ** 2, -1), 1)
    assert close(q.indices, first)
    assert close(q.code, CODES[0][first])
    assert close(q.commitment, np.sum(rest**2, 1))
    assert close(r.indices, np.stack([first, second], 1))
    assert close(r.code, CODES[0][first] + CODES[1][second])
    assert close(r.commitment, np.sum(rest**2, 1) + np.sum((rest - CODES[1][second]) ** 2, 1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_laws_of_a_quantizer(which, x64):
    # the index names the code; vmap is the loop; backwards a code is z, or z squashed
    quantizer, z = quantizers()[which], jnp.asarray(Z)
    mapped = jax.jit(jax.vmap(quantizer))(z)
    assert close(jax.jit(jax.vmap(quantizer.lookup))(mapped.indices), mapped.code)
    one = jax.jit(lambda z: quantizer(z))(Z[2])
    for a, b in zip(*map(jax.tree.leaves, (one, mapped)), strict=True):
        assert close(a, np.asarray(b)[2])
    jacobian = jax.jit(jax.jacrev(lambda z: quantizer(z).code))(Z[2])
    expected = np.eye(3) if which < 2 else np.diag(1.0 - np.tanh(Z[2]) ** 2)
    assert close(jacobian, expected)


def test_each_penalty_pulls_one_side(x64):
    codebook, z = quantizers()[0], Z[0]

    def penalty(name, codes, z):
        return getattr(codebook._replace(codes=codes)(z), name)

    index = int(jax.jit(lambda z: codebook(z))(z).indices)
    gap = 2.0 * (z - codebook.codes[index])
    still = np.zeros_like(codebook.codes)
    for name, to_codes, to_z in (
        ("commitment", still, gap),
        ("codebook", np.where(np.arange(5)[:, None] == index, -gap, still), np.zeros(3)),
    ):
        found = jax.jit(jax.grad(partial(penalty, name), (0, 1)))(codebook.codes, z)
        assert close(found[0], to_codes)
        assert close(found[1], to_z)


def test_each_penalty_of_residual_codebooks_pulls_one_side(x64):
    """Each codebook learns from what it was given, and none from what those after it were left."""
    residual, z = quantizers()[1], Z[0]
    codes = residual.codebooks.codes
    first, second = np.asarray(jax.jit(lambda z: residual(z))(z).indices)
    left = z - codes[0, first]  # and what the second leaves
    last = left - codes[1, second]

    def penalty(name, codes, z):
        books = residual.codebooks._replace(codes=codes)
        return getattr(ResidualCodebooks(books)(z), name)

    to_codes = np.zeros_like(codes)
    to_codes[0, first], to_codes[1, second] = -2.0 * left, -2.0 * last
    for name, expected in (
        ("commitment", (np.zeros_like(codes), 2.0 * left + 2.0 * last)),
        ("codebook", (to_codes, np.zeros(3))),
    ):
        found = jax.jit(jax.grad(partial(penalty, name), (0, 1)))(codes, z)
        assert all(map(close, found, expected)), name


def test_residuals_with_a_zero_code_only_shrink(x64):
    codes = RNG.normal(size=(4, 6, 3))
    codes[:, 0] = 0.0
    books = codebook_of(codes)

    def error(depth):
        residual = ResidualCodebooks(jax.tree.map(lambda a: a[:depth], books))
        q = jax.jit(jax.vmap(residual))(jnp.asarray(Z))
        return np.sum((np.asarray(q.code) - Z) ** 2, axis=1)

    errors = np.array([error(depth) for depth in (1, 2, 3, 4)])
    assert np.all(np.diff(errors, axis=0) <= 1e-12)
    assert errors[-1].mean() < 0.5 * errors[0].mean()


@pytest.mark.parametrize("levels", [(2,), (3, 2), (4, 3, 5)])
def test_finite_scalars_are_counted_by_their_index(levels, x64):
    quantizer, count = FSQ(levels), int(np.prod(levels))
    codes = np.asarray(jax.jit(jax.vmap(quantizer.lookup))(jnp.arange(count)))
    grids = [np.linspace(-1.0, 1.0, n) for n in levels]  # levels at equal distances, ends included
    assert close(codes, np.array(list(product(*grids))))
    q = jax.jit(jax.vmap(quantizer))(jnp.arctanh(jnp.asarray(0.99 * codes)))
    assert close(q.code, codes)
    assert q.indices.tolist() == list(range(count))
    far = quantizer(jnp.full(len(levels), 1e6))
    assert close(far.code, np.ones(len(levels)))
    assert float(far.commitment) == float(far.codebook) == 0.0


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_the_nearest_is_the_nearest_far_from_0(spread):
    """In float32 at 1,000 times the spread, all codes there or half of them on the other side."""
    rng = np.random.default_rng(1)
    offset = np.where(np.arange(512)[:, None] % 2, 1.0, -1.0)
    for shift in (np.ones((512, 1)), offset):
        codes = (1e3 * spread * shift + spread * rng.normal(size=(512, 4))).astype(np.float32)
        z = (codes + 0.5 * spread * rng.normal(size=(512, 4))).astype(np.float32)
        squares = np.sum((z[:, None].astype(float) - codes) ** 2, -1)
        q = jax.jit(lambda book, z: jax.vmap(book)(z))(codebook_of(codes), z)
        taken = squares[np.arange(512), q.indices]
        assert np.all(taken <= squares.min(1) * (1.0 + 1e-6))
        assert np.array_equal(q.code, codes[np.asarray(q.indices)])  # the code, to the last digit
    deep = ResidualCodebooks(codebook_of(codes.reshape(2, 256, 4)))
    q = jax.jit(jax.vmap(deep))(z)
    assert np.array_equal(q.code, jax.jit(jax.vmap(deep.lookup))(q.indices))


def test_straight_to_is_its_value():
    """To the last digit, which z + sg(e - z) is not: there 0.3 comes back as 0 from 1e8."""
    for dtype in (jnp.float32, jnp.bfloat16):
        e, z = jnp.array([0.3, -7.1, 1e-9], dtype), jnp.array([1e8, 3.3, -1.0], dtype)
        assert np.array_equal(straight_through_value(e, z), e)
        assert np.array_equal(jax.jit(straight_through_value)(e, z), e)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("levels", [(1000, 1000), (257, 3), (2**25,)])
def test_finite_scalars_in_any_precision_are_levels_there_are(dtype, levels):
    """A bfloat16 tells no integers apart above 256, a float32 above 2^24."""
    quantizer = FSQ(levels)
    z = jnp.asarray(np.linspace(-20.0, 20.0, 200)[:, None] * np.ones(len(levels)), dtype)
    q = jax.jit(jax.vmap(quantizer))(z)
    assert np.min(q.indices) == 0
    assert np.max(q.indices) == np.prod(levels) - 1
    assert q.code.dtype == dtype
    looked_up = jax.jit(jax.vmap(quantizer.lookup))(q.indices)
    assert np.allclose(q.code.astype(float), looked_up, atol=float(jnp.finfo(dtype).eps))
    if dtype != jnp.float32:  # the same as of the same numbers in float32
        assert np.array_equal(
            jax.jit(jax.vmap(quantizer))(z.astype(jnp.float32)).indices, q.indices
        )


def test_a_codebook_in_half_precision_counts_all_the_same():
    """300 uses, which a bfloat16 takes for 256 or 304, and distances that it rounds together."""
    codes, rng = jnp.array([[1.0, 1.0], [1.0078125, 1.0]], jnp.bfloat16), np.random.default_rng(0)
    book, index_0 = INIT[2](codes), np.zeros(301, int)
    z = jnp.asarray(100.0 * rng.normal(size=(301, 2)), jnp.bfloat16)
    wide = np.asarray(z, float), np.asarray(codes, float)
    index = np.argmin(np.sum((wide[0][:, None] - wide[1]) ** 2, -1), 1)
    assert np.array_equal(jax.jit(jax.vmap(book))(z).indices, index)
    moved = EMA(book, z, index_0, decay=0.0)
    assert moved.counts.tolist() == [301.0, 0.0]
    assert moved.codes.dtype == jnp.bfloat16
    assert np.allclose(np.asarray(moved.sums)[0], np.sum(wide[0], 0), rtol=1e-5)
    drawn = jax.eval_shape(reset_dead_codes, jax.random.key(0), moved, z, index_0, threshold=1.0)
    assert drawn.codes.dtype == jnp.bfloat16


def test_straight_to():
    value, slope = jax.value_and_grad(lambda z: 3.0 * straight_through_value(jnp.floor(z), z))(1.7)
    assert (float(value), float(slope)) == (3.0, 3.0)


def lloyd(z, codes):
    index = np.argmin(np.sum((z[:, None] - codes) ** 2, -1), 1)
    return np.stack([z[index == k].mean(0) for k in range(len(codes))]), index


def test_averages_without_memory_are_k_means(x64):
    z = np.concatenate([RNG.normal(loc=c, size=(20, 2)) for c in (-3.0, 0.0, 3.0)])
    codebook, expected = codebook_of(z[[0, 25, 50]]), z[[0, 25, 50]]
    index = np.zeros(len(z), int)

    @jax.jit
    def move(codebook):
        return ema_codebook(
            codebook, jnp.asarray(z), jax.vmap(codebook)(z).indices, decay=0.0, epsilon=0.0
        )

    for _ in range(8):
        expected, index = lloyd(z, expected)
        codebook = move(codebook)
        assert close(codebook.codes, expected)
    # a clustering whose codes are the means stays, whatever the decay
    again = EMA(codebook, z, index, decay=0.7, epsilon=0.0)
    for a, b in zip(again, codebook, strict=True):
        assert close(a, b)


def test_averages_forget_by_the_decay_and_are_smoothed(x64):
    z, index = np.array([[2.0], [4.0], [7.0]]), np.array([0, 0, 2])
    moved = EMA(codebook_of(np.ones((3, 1))), z, index, decay=0.9, epsilon=0.5)
    moved = jax.tree.map(np.asarray, moved)
    counts = np.array([0.9 + 0.1 * 2, 0.9, 0.9 + 0.1])
    sums = np.array([0.9 + 0.1 * 6, 0.9, 0.9 + 0.1 * 7])
    assert close(moved.counts, counts)
    assert close(moved.sums[:, 0], sums)
    smooth = (counts + 0.5) / (counts.sum() + 1.5) * counts.sum()
    assert close(moved.codes[:, 0], sums / smooth)
    never: Any = Codebook(np.ones((3, 1)), np.zeros(3), np.zeros((3, 1)))
    assert np.all(np.isfinite(EMA(never, z, index, decay=0.0).codes))


def test_residual_averages_see_what_is_left(x64):
    _, residual, _ = quantizers()
    z = Z
    indices = np.asarray(jax.jit(jax.vmap(residual))(z).indices)
    moved = jax.tree.map(np.asarray, EMA(residual, z, indices, decay=0.5))
    rests = (z, z - residual.codebooks.codes[0][indices[:, 0]])
    for l, rest in enumerate(rests):
        book = jax.tree.map(lambda a, l=l: a[l], residual.codebooks)
        alone = EMA(book, rest, indices[:, l], decay=0.5)
        assert close(moved.codebooks.codes[l], alone.codes)
        dead = book._replace(counts=np.zeros(5))
        deads = residual.codebooks._replace(counts=np.zeros((2, 5)))
        drawn = RESET(jax.random.key(0), ResidualCodebooks(deads), z, indices, threshold=1.0)
        of_rest = np.sum(
            (np.asarray(drawn.codebooks.codes[l])[:, None] - np.asarray(rest)) ** 2, -1
        )
        assert np.all(of_rest.min(1) < 1e-20)
        assert not close(np.asarray(drawn.codebooks.codes)[l], dead.codes)


def test_what_is_left_after_each_of_three_codebooks(x64):
    """z = 7, codes 4, 2 and 0.5: the averages of the three see 7, 3 and 1; dead codes are drawn
    from those, each codebook's by itself, and stand for as many vectors as the threshold."""
    codes = np.array([[[4.0], [50.0]], [[2.0], [50.0]], [[0.5], [50.0]]])
    z, indices = np.array([[7.0]]), np.zeros((1, 3), int)
    books = codebook_of(codes)
    moved = EMA(ResidualCodebooks(books), z, indices, decay=0.0, epsilon=0.0)
    assert close(np.asarray(moved.codebooks.codes)[:, 0, 0], np.array([7.0, 3.0, 1.0]))
    dead = ResidualCodebooks(books._replace(counts=np.zeros((3, 2))))
    drawn = RESET(jax.random.key(0), dead, z, indices, threshold=0.3).codebooks
    assert close(drawn.codes, np.array([[[rest]] * 2 for rest in (7.0, 3.0, 1.0)]))
    assert close(drawn.counts, np.full((3, 2), 0.3))
    assert close(drawn.sums, 0.3 * np.asarray(drawn.codes))


def test_each_codebook_draws_its_own_rows():
    """Codes of 0 leave each codebook the same vectors: were the key one, so were the draws."""
    books = codebook_of(np.zeros((2, 40, 1), np.float32))
    dead = ResidualCodebooks(books._replace(counts=np.zeros((2, 40), np.float32)))
    z, indices = np.arange(100.0, dtype=np.float32)[:, None], np.zeros((100, 2), int)
    first, second = RESET(jax.random.key(0), dead, z, indices, threshold=1.0).codebooks.codes
    assert np.mean(np.asarray(first) == np.asarray(second)) < 0.2  # one in a hundred by chance


def test_revival_draws_the_dead_from_the_batch():
    counts = np.array([3.0, 0.2, 1.0, 0.0], np.float32)
    codebook: Any = Codebook(np.zeros((4, 2), np.float32), counts, np.ones((4, 2), np.float32))
    z = np.arange(12.0, dtype=np.float32).reshape(6, 2) + 1
    index = np.zeros(6, int)
    found = RESET(jax.random.key(0), codebook, z, index, threshold=1.0)
    found = jax.tree.map(np.asarray, found)
    rows = {tuple(row) for row in z.tolist()}
    for k in (0, 2):
        assert jax.tree.all(jax.tree.map(lambda a, b, k=k: np.all(a[k] == b[k]), found, codebook))
    for k in (1, 3):
        assert tuple(found.codes[k].tolist()) in rows
        assert float(found.counts[k]) == 1.0
        assert found.sums[k].tolist() == found.codes[k].tolist()
    still = RESET(jax.random.key(0), codebook, z, index, threshold=0.0)
    assert all(map(np.array_equal, still, codebook))


def test_perplexity_counts_codes():
    of = jax.jit(perplexity)
    assert float(of(np.full(8, 3))) == pytest.approx(8.0)
    assert float(of(np.array([0, 5, 0]))) == 1.0
    assert float(of(np.array([6, 6, 12]))) == pytest.approx(2.0 * 2**0.5)  # 3/2 bits


@pytest.mark.thorough
def test_vq_is_a_bound_and_its_model_a_model(x64):
    model, x = small_vqvae(jnp.asarray(RNG.normal(size=(N, K)))), jnp.array([0.7, -1.1])
    objective = jax.jit(vq)
    bound, terms = objective(model, jax.random.key(0), x, commitment=0.0, codebook=0.0)
    of_elbo, halves = jax.jit(elbo)(model, jax.random.key(1), x)
    assert close(bound, of_elbo)
    assert close((terms.distortion, terms.rate), halves)
    ways = np.array(list(product(range(K), repeat=N)))
    joint = jax.jit(jax.vmap(lambda k: model.prior.log_prob(k) + model.decode(k).log_prob(x)))(ways)
    assert bound < logsumexp(joint)
    assert np.any(np.isclose(joint, bound))  # one of the ways: q is on it alone
    penalized, terms = objective(model, jax.random.key(0), x)
    assert close(penalized, bound - 1.25 * terms.error)
    gap = terms.vectors - model.quantizer.codes[terms.indices]
    assert close(terms.error, jnp.sum(gap**2))
    assert generate(model, jax.random.key(2)).sample(jax.random.key(3)).shape == (2,)


def test_gradients_of_vq(x64):
    logits = jnp.asarray(RNG.normal(size=(N, K)))
    model, x = small_vqvae(logits), jnp.array([0.7, -1.1])
    (w,), (v,) = model.encoder.args, model.decoder.args
    z = w @ x
    k = jnp.argmin(jnp.abs(z[:, None] - model.quantizer.codes[:, 0][None]), axis=1)
    e = model.quantizer.codes[k, 0]

    def gradient(**weights):
        return jax.jit(jax.grad(lambda m: vq(m, jax.random.key(0), x, **weights)[0]))(model)

    g = gradient(commitment=0.3, codebook=0.0)
    into_z = v.T @ (x - v @ e) - 0.6 * (z - e)  # straight through, and the commitment
    assert close(g.encoder.args[0], jnp.outer(into_z, x))
    assert close(g.decoder.args[0], jnp.outer(x - v @ e, e))
    assert close(g.quantizer.codes, jnp.zeros((K, 1)))
    assert close(g.prior.logits, jax.jit(jax.grad(lambda l: Categorical(l).log_prob(k)))(logits))
    pulled = gradient(commitment=0.3, codebook=2.0)
    assert close(pulled.encoder.args[0], g.encoder.args[0])
    assert close(pulled.quantizer.codes[:, 0], jnp.zeros(K).at[k].add(4.0 * (z - e)))


@pytest.mark.thorough
def test_a_step_with_averages(x64):
    # all but the codes as train_step leaves it; the codes by the vectors before it, whatever the
    # optimiser does to them
    model, optimizer = small_vqvae(), optax.adamw(0.1, weight_decay=0.5)
    xs, key = jnp.asarray(RNG.normal(size=(4, 2))), jax.random.key(0)
    start = init_state(model, optimizer)
    step = jax.jit(ema_step(vq, optimizer, decay=0.5))
    state, metrics = step(start, key, xs, commitment=0.1)
    step = jax.jit(train_step(partial(vq, codebook=0.0), optimizer))
    plain, _ = step(start, key, xs, commitment=0.1)
    assert close(state.model.encoder.args[0], plain.model.encoder.args[0])
    assert not close(state.model.encoder.args[0], model.encoder.args[0])
    z = jax.jit(jax.vmap(model.encoder))(xs).reshape(-1, 1)
    expected = EMA(model.quantizer, z, jax.jit(jax.vmap(model.quantizer))(z).indices, decay=0.5)
    for a, b in zip(state.model.quantizer, expected, strict=True):
        assert close(a, b)
    assert int(state.step) == 1
    assert float(metrics["commitment"]) == 0.1
    step = jax.jit(ema_step(vq, optimizer, decay=0.0, threshold=100.0))
    revived, _ = step(start, key, xs)
    assert close(revived.model.quantizer.counts, np.full(K, 100.0))
    assert np.all(np.any(np.isclose(revived.model.quantizer.codes, np.asarray(z).T), axis=1))


class Normed(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)[None]


def test_codes_follow_the_vectors_of_the_training_step():
    # a batch norm's of this batch are -1 and 1, by its running statistics 9 and 11
    def objective(model, key, x, *, commitment, codebook=1.0):
        return vq(model, key, x, commitment=commitment, codebook=codebook)

    model: Any = VQVAE(
        encoder=Normed(),
        quantizer=init_codebook(jnp.array([[-0.5], [0.5]])),
        decoder=Partial(lambda codes: Normal(codes[0], 1.0)),
        prior=Constant(Categorical(jnp.zeros((1, 2)))),
    )
    optimizer, xs = optax.sgd(0.0), jnp.array([[9.0], [9.0], [11.0], [11.0]])
    step = ema_step(objective, optimizer, decay=0.0)
    step = jax.jit(partial(step, commitment=optax.constant_schedule(0.25)))
    state, _ = step(init_state(model, optimizer), jax.random.key(0), xs)
    np.testing.assert_allclose(state.model.quantizer.codes, [[-1.0], [1.0]], atol=1e-4)
    np.testing.assert_array_equal(state.model.quantizer.counts, [2.0, 2.0])


def test_a_point_mass():
    q = Delta(jnp.array([2, 0]))
    assert float(q.log_prob(q.sample(jax.random.key(0)))) == 0.0
    assert float(q.log_prob(jnp.array([2, 1]))) == -jnp.inf


F32 = jnp.zeros(3, jnp.float32)
BOOK: Any = Codebook(jnp.zeros((5, 3)), jnp.ones(5), jnp.zeros((5, 3)))
BATCH = (jnp.zeros((4, 3)), jnp.zeros(4, int))
NONE: Any = None
BAD: Any = [
    (lambda: BOOK(jnp.zeros(4)), "z has shape"),
    (lambda: BOOK(NONE), "z is None"),
    (lambda: BOOK(jnp.zeros(3, int)), "z has dtype int32, expected floats"),
    (lambda: ResidualCodebooks(BOOK)(F32), "codes has shape"),
    (lambda: ResidualCodebooks(NONE)(F32), "codebooks is None"),
    (lambda: FSQ((3, 1))(jnp.zeros(2)), "levels is"),
    (lambda: FSQ(NONE)(jnp.zeros(2)), "levels is"),
    (lambda: FSQ((3, 3))(F32), "z has shape"),
    (lambda: init_codebook(jnp.zeros(3)), "codes has shape"),
    (lambda: init_codebook(NONE), "codes is None"),
    (lambda: ema_codebook(NONE, *BATCH, decay=0.9), "quantizer is None"),
    (lambda: ema_codebook(BOOK, BATCH[0][0], BATCH[1], decay=0.9), "z has shape"),
    (lambda: ema_codebook(BOOK, BATCH[0], BATCH[1][:2], decay=0.9), "indices has shape"),
    (lambda: ema_codebook(BOOK, BATCH[0], jnp.zeros(4), decay=0.9), "indices has dtype"),
    (lambda: ema_codebook(BOOK, *BATCH, decay=F32), "decay has shape"),
    (lambda: reset_dead_codes(NONE, BOOK, *BATCH, threshold=1.0), "key is None"),
    (
        lambda: reset_dead_codes(jax.random.key(0), BOOK, *BATCH, threshold=NONE),
        "threshold is None",
    ),
    (lambda: perplexity(jnp.zeros((2, 2))), "counts has shape"),
    (lambda: perplexity(NONE), "counts is None"),
    (lambda: vq(NONE, jax.random.key(0), F32), "model is None"),
    (lambda: vq(small_vqvae(), jax.random.key(0), None), "x is None"),
    (lambda: vq(small_vqvae()._replace(prior=NONE), jax.random.key(0), F32[:2]), "prior is"),
    (lambda: vq(small_vqvae(), jax.random.key(0), F32[:2], commitment=F32), "commitment has"),
    (lambda: vq(small_vqvae()._replace(encoder=lambda x: x), NONE, F32[:2]), "shape"),
    (lambda: vq(small_vqvae()._replace(decoder=lambda e: e), NONE, F32[:2]), "decoder returned"),
    (lambda: ema_step(NONE, optax.sgd(0.1)), "objective is None"),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_a_bad_argument_is_named(call, says):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_hidden_moves_no_average():
    """Not even a NaN; and a code that nothing has gone to stays where it is."""
    codebook = init_codebook(jnp.array([[0.0], [9.0]]))
    hidden = EMA(codebook, jnp.array([[1.0], [jnp.nan]]), jnp.array([0, -1]), decay=0.9)
    alone = EMA(codebook, jnp.array([[1.0]]), jnp.array([0]), decay=0.9)
    for a, b in zip(hidden, alone, strict=True):
        assert close(a, b)
    unused = EMA(codebook, jnp.array([[1.0], [2.0]]), jnp.array([0, 0]), decay=0.0)
    np.testing.assert_allclose(unused.codes, [[1.5], [9.0]], rtol=1e-4)
    nothing = EMA(codebook, jnp.array([[1.0]]), jnp.array([-1]), decay=0.0)
    np.testing.assert_array_equal(nothing.codes, codebook.codes)
