from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial
from scipy.special import expit, logit

import jaxvae as jv
from jaxvae import nn
from jaxvae.distributions.independent import factors
from jaxvae.evaluation.decompositions import decompose, marginals
from jaxvae.training.schedules import at_steps, warn_if_unfinished
from tests.common import close, draws, standard_errors_off

CODE: Any = jv.regularizers.LatentSample  # of which each test fills in what its penalty looks at


def linear(seed=0, d=3, n=4):
    """A VAE with linear networks; its posterior is a diagonal Gaussian."""
    rng, dtype = np.random.default_rng(seed), jnp.result_type(float)
    into, out_of, xs = (rng.normal(size=shape).astype(dtype) for shape in ((d, n), (n, d), (5, n)))
    return jv.VAE(
        encode=Partial(lambda w, x: jv.Normal(w @ x, 0.3 + jax.nn.softplus(w[:, 0])), into),
        decode=Partial(lambda w, z: jv.Normal(w @ z, 1.0), out_of),
        prior=jv.StandardNormal((d,)),
    ), xs


def value_and_gradient(objective, model, key, xs, **hyper):
    loss = lambda model: jv.batched(objective)(model, key, xs, **hyper)[0]
    return jax.value_and_grad(loss)(model)


def parent(model, key, x, *, beta=1.0, rate=jv.auto_kl):
    """`elbo` at the draw that `regularized` makes with this key."""
    return jv.elbo(model, jax.random.split(key)[0], x, beta=beta, kl=rate)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(close, a, b)))


# what makes each the parent: objective, and the parent
SPECIAL_CASES = {
    "the rate": (partial(jv.regularizers.regularized, penalty=lambda code, key: code.rate), parent),
    "no free bits": (
        partial(
            jv.regularizers.regularized, penalty=partial(jv.regularizers.free_bits, free_nats=0.0)
        ),
        parent,
    ),
    "no free bits by level": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(
                jv.regularizers.free_bits, free_nats=0.0, parts=jv.regularizers.kl_per_level
            ),
        ),
        parent,
    ),
    "no free bits by group": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(
                jv.regularizers.free_bits,
                free_nats=0.0,
                parts=partial(jv.regularizers.kl_per_group, groups=np.array([0, 1, 0])),
            ),
        ),
        parent,
    ),
    "no capacity": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(jv.regularizers.capacity, capacity=0.0),
            beta=4.0,
        ),
        partial(parent, beta=4.0),
    ),
    "total correlation at beta 1": (
        partial(
            jv.regularizers.regularized, penalty=partial(jv.regularizers.tc_penalty, dataset_size=5)
        ),
        partial(parent, rate=jv.sampled_kl),
    ),
    "total correlation at beta 1, weighted sampling": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(
                jv.regularizers.tc_penalty,
                dataset_size=50,
                weighting=jv.evaluation.minibatch_weighted,
            ),
        ),
        partial(parent, rate=jv.sampled_kl),
    ),
    "DIP-I without weight": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(jv.regularizers.dip_1_penalty, off_diagonal=0.0, diagonal=0.0),
        ),
        parent,
    ),
    "DIP-II without weight": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(jv.regularizers.dip_2_penalty, off_diagonal=0.0, diagonal=0.0),
        ),
        parent,
    ),
    "InfoVAE at alpha 0, lambda 1": (
        partial(
            jv.regularizers.regularized,
            penalty=partial(jv.regularizers.info_penalty, alpha=0.0, weight=1.0),
        ),
        parent,
    ),
    "WAE without weight": (
        partial(jv.regularizers.regularized, penalty=jv.regularizers.mmd_penalty, beta=0.0),
        partial(parent, beta=0.0),
    ),
    "sliced WAE without weight": (
        partial(jv.regularizers.regularized, penalty=jv.regularizers.sliced_penalty, beta=0.0),
        partial(parent, beta=0.0),
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SPECIAL_CASES)
def test_special_cases_recover_the_parent_and_its_gradient(x64, name):
    model, xs = linear()
    objective, of_parent = SPECIAL_CASES[name]
    both = jax.jit(
        lambda a, b: [
            value_and_gradient(of, model, key, xs) for of, key in ((objective, a), (of_parent, b))
        ]
    )
    assert same(*both(jax.random.key(1), jax.random.key(1)))


def test_the_terms_are_the_true_ones_whatever_the_penalty():
    model, xs = linear()
    objective = partial(jv.regularizers.regularized, penalty=lambda code, key: 7.0 * code.rate)
    both = jax.jit(
        lambda a, b: [
            jv.batched(of)(model, key, xs)[1] for of, key in ((objective, a), (parent, b))
        ]
    )
    assert same(*both(jax.random.key(1), jax.random.key(1)))


def test_free_bits_are_of_the_batch_mean_and_a_part_below_them_has_no_gradient(x64):
    rates = np.array([[0.1, 3.0], [0.7, 5.0]])  # of two examples and two parts: means 0.4 and 4

    def objective(rates, key, x, *, free_nats):
        code = CODE(None, None, None, None, None)
        parts = lambda _: rates @ x
        return jv.regularizers.free_bits(code, key, free_nats=free_nats, parts=parts), None

    one_hot = np.eye(2)
    total = lambda rates, free: jv.batched(objective)(
        rates.T, jax.random.key(0), one_hot, free_nats=free
    )[0]
    slope = jax.jit(jax.value_and_grad(total))
    for free, value, slopes in (
        (0.5, 4.5, [0.0, 0.5]),
        (0.3, 4.4, [0.5, 0.5]),
        (6.0, 12.0, [0, 0]),
    ):
        found, gradient = slope(rates, free)
        assert close(found, value)
        assert close(gradient, np.array([slopes, slopes]))


def test_groups_add_up_their_latents(x64):
    model, xs = linear()
    code = CODE(jax.jit(model.encode)(xs[0]), model.prior, None, None, None)

    @jax.jit
    def both(code):
        groups = jv.regularizers.kl_per_group(code, groups=np.array([1, 0, 1]))
        return groups, jv.regularizers.kl_per_latent(code)

    groups, each = jax.tree.map(np.asarray, both(code))
    assert close(groups, [each[1], each[0] + each[2]])
    with pytest.raises(ValueError, match="kl_per_group: groups has shape"):
        jv.regularizers.kl_per_group(code, groups=np.array([1, 0]))
    with pytest.raises(ValueError, match="groups holds -1, expected 0 or more"):
        jv.regularizers.kl_per_group(code, groups=np.array([1, 0, -1]))


def test_levels_are_those_of_a_hierarchy(x64):
    joint = lambda s: jv.Joint(
        jv.Normal(jnp.zeros(2), s * jnp.ones(2)), Partial(lambda z: jv.Normal(z, 1.0 + 0 * z))
    )

    @jax.jit
    def levels(key):
        q, p = joint(0.5), joint(1.0)
        z, log_q = jv.sample_and_log_prob(q, key)
        code = CODE(q, p, z, log_q, jv.auto_kl(q, p, z, log_q))
        return jv.regularizers.kl_per_level(code), code.rate

    kls, rate = jax.tree.map(np.asarray, levels(jax.random.key(0)))
    assert kls.shape == (2,)
    assert close(np.sum(kls), rate)
    assert close(kls[1], 0.0)


def test_hyper_parameters_reach_the_penalty(x64):
    model, xs = linear()
    objective = jv.batched(partial(jv.regularizers.regularized, penalty=jv.regularizers.capacity))
    bound, terms = jax.jit(objective)(model, jax.random.key(1), xs, capacity=20.0, beta=3.0)
    excess = np.abs(np.mean(terms.rate) - 20.0)
    assert close(bound, -(np.mean(terms.distortion) + 3.0 * excess))


def test_capacity_is_of_the_batch_mean(x64):
    """Rates of 1 and 9 about 4 nats: |5 - 4|, where the mean of 3 and 5 would be 4."""

    def objective(rates, key, x, *, capacity):
        code = CODE(None, None, None, None, rates @ x)
        return jv.regularizers.capacity(code, key, capacity=capacity), None

    def penalty(rates):
        return jv.batched(objective)(rates, jax.random.key(0), np.eye(2), capacity=4.0)[0]

    value, slopes = jax.jit(jax.value_and_grad(penalty))(np.array([1.0, 9.0]))
    assert close(value, 1.0)
    assert close(slopes, np.array([0.5, 0.5]))


def test_capacity_pulls_the_rate_from_both_sides():
    def objective(scale, key, rate):
        return jv.regularizers.capacity(
            CODE(None, None, None, None, scale * rate), key, capacity=5.0
        ), None

    rates = np.array([1.0, 5.0], np.float32)
    value = lambda scale: jv.batched(objective)(scale, jax.random.key(0), rates)[0]
    slope_at = jax.jit(jax.value_and_grad(value))
    for mean_rate, slope in ((2.0, -3.0), (8.0, 3.0)):
        found, gradient = slope_at(mean_rate / 3.0)
        assert close(found, 3.0)
        assert close(gradient, slope)


# --- what compares batches -------------------------------------------------------------------


def gaussian_kernel_mean(loc, covariance, scale):
    """E exp(-|v|^2 / 2 scale^2) for v ~ N(loc, covariance)."""
    d = len(loc)
    wide = covariance + scale**2 * np.eye(d)
    return np.sqrt(scale ** (2 * d) / np.linalg.det(wide)) * np.exp(
        -0.5 * loc @ np.linalg.solve(wide, loc)
    )


@pytest.mark.thorough
def test_mmd_of_two_gaussians_is_the_closed_form(x64):
    loc, scale = np.array([0.7, -0.3]), 1.3
    spread = np.array([[0.8, 0.0], [0.4, 0.5]])
    covariance = spread @ spread.T
    exact = (
        gaussian_kernel_mean(0 * loc, 2 * np.eye(2), scale)
        + gaussian_kernel_mean(0 * loc, 2 * covariance, scale)
        - 2 * gaussian_kernel_mean(loc, covariance + np.eye(2), scale)
    )

    def estimate(key):
        a, b = jax.random.split(key)
        x = jax.random.normal(a, (20, 2))
        y = loc[None] + jax.random.normal(b, (30, 2)) @ spread.T
        return jv.regularizers.mmd(x, y, kernel=partial(jv.regularizers.rbf, scale=scale))

    assert standard_errors_off(draws(estimate, 4000), exact) < 4


def test_a_kernel_without_a_derivative_at_a_point_itself(x64):
    """exp(-|x - y|), positive definite, whose slope is undefined where x = y."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=(3, 2)))

    def found(x):
        return jv.regularizers.mmd(x, y, kernel=lambda a, b: jnp.exp(-jnp.linalg.norm(a - b)))

    k = lambda a, b: np.exp(-np.linalg.norm(a - b))
    pairs = [np.mean([k(p, q) for p in a for q in a if p is not q]) for a in map(list, (x, y))]
    exact = sum(pairs) - 2.0 * np.mean([k(p, q) for p in x for q in y])
    assert close(found(x), exact)
    assert jnp.all(jnp.isfinite(jax.grad(found)(x)))


def test_the_multiquadric_kernel_by_hand():
    x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    assert close(
        jv.regularizers.inverse_multiquadric(x, y, scale=0.5), 1.0 / 3.0
    )  # C = 1, |x - y|^2 = 2


def test_sliced_wasserstein_in_one_dimension_is_scipys(x64):
    scipy_stats = pytest.importorskip("scipy.stats")
    x, y = np.random.default_rng(0).normal(size=(2, 50, 1))
    y = 2.0 * y + 1.0
    ours = jax.jit(jv.regularizers.sliced_wasserstein)(x, y, np.array([[-3.0]]))
    quantiles = (np.arange(50) + 0.5) / 50
    theirs = np.mean(
        (scipy_stats.mstats.mquantiles(x, quantiles, 0.5, 0.5)
         - scipy_stats.mstats.mquantiles(y, quantiles, 0.5, 0.5)) ** 2
    )  # fmt: skip
    assert close(ours, theirs)


def test_sliced_wasserstein_of_a_shift_is_its_length_squared_over_d(x64):
    """E over directions of (theta . m)^2 = |m|^2 / d."""
    x = np.random.default_rng(0).normal(size=(40, 3))
    m = np.array([1.0, -2.0, 0.5])
    of_key = lambda key: jv.regularizers.sliced_wasserstein(
        x, x + m[None], jax.random.normal(key, (10, 3))
    )
    assert standard_errors_off(draws(of_key, 2000), np.sum(m**2) / 3) < 4


def test_the_sliced_price_has_a_draw_and_a_direction_of_each_example(x64):
    model, xs = linear()
    objective = jv.batched(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.sliced_penalty, beta=3.0)
    )

    @jax.jit
    def both(a, b):
        keys = jax.vmap(jax.random.split)(jax.random.split(a, len(xs)))
        z = jax.vmap(lambda key, x: model.encode(x).sample(key))(keys[:, 0], xs)
        keys = jax.vmap(jax.random.split)(keys[:, 1])
        y = jax.vmap(model.prior.sample)(keys[:, 0])
        theta = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys[:, 1])
        return (z, y, theta), objective(model, b, xs)

    found = both(jax.random.key(0), jax.random.key(0))
    (z, y, theta), (bound, terms) = jax.tree.map(np.asarray, found)
    theta = theta / np.linalg.norm(theta, axis=1, keepdims=True)
    gaps = np.sort(z @ theta.T, axis=0) - np.sort(y @ theta.T, axis=0)
    assert close(-(bound + np.mean(terms.distortion)) / 3.0, np.mean(gaps**2))


@pytest.mark.thorough
def test_the_total_correlation_price_is_the_closed_form_on_gaussians(x64):
    """-1/2 log det R of a Gaussian q(z), told from a batch that is the data set."""
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    noise = 0.05
    root = np.linalg.cholesky(covariance - noise * np.eye(2))
    xs = np.random.default_rng(5).normal(size=(1000, 2)) @ root.T  # q(z) is nearly N(0, covariance)
    model = jv.VAE(
        lambda x: jv.Normal(x, jnp.full(2, jnp.sqrt(noise))),
        lambda z: jv.Normal(z, 1.0),
        jv.StandardNormal((2,)),
    )
    keys = jax.random.split(jax.random.key(1), len(xs))

    def extra(key, x):  # what one more nat of weight on the total correlation costs
        code_key, penalty_key = jax.random.split(key)
        q = model.encode(x)
        z, log_q = jv.sample_and_log_prob(q, code_key)
        code = CODE(q, model.prior, z, log_q, None)
        penalty = partial(
            jv.regularizers.tc_penalty,
            code,
            penalty_key,
            dataset_size=1000,
            weighting=jv.evaluation.full_batch,
        )
        return penalty(correlation=2.0) - penalty(correlation=1.0)

    correlation = jax.jit(jax.vmap(extra, axis_name="batch"))(keys, xs)
    exact = -0.5 * np.log(np.linalg.det(covariance))
    assert standard_errors_off(correlation, exact) < 4


def test_each_example_has_its_own_row_of_weights(x64):
    """Under stratified sampling an example weighs otherwise in its own q(z) than in the others'."""
    model, xs = linear()
    weights = jv.evaluation.minibatch_stratified(len(xs), 50).astype(float)

    def penalty(x, z, log_q):
        code = CODE(model.encode(x), model.prior, z, log_q, None)
        penalty = partial(
            jv.regularizers.tc_penalty, information=2.0, correlation=3.0, dimension_wise=5.0
        )
        return penalty(code, jax.random.key(0), dataset_size=50)

    @jax.jit
    def both(keys):
        qs = jax.vmap(lambda x: marginals(model.encode(x)))(xs)
        z, log_q = jax.vmap(lambda key, x: jv.sample_and_log_prob(model.encode(x), key))(keys, xs)
        parts = jax.vmap(partial(decompose, qs, factors(model.prior)))(z, log_q, weights)
        return jax.vmap(penalty, axis_name="batch")(xs, z, log_q), parts

    found = both(jax.random.split(jax.random.key(2), len(xs)))
    penalties, (information, correlation, dimension_wise) = jax.tree.map(np.asarray, found)
    assert close(penalties, 2.0 * information + 3.0 * correlation + 5.0 * dimension_wise)


def test_decorrelation_by_hand(x64):
    """mu = (1, 1), (-1, -1): C = [[1, 1], [1, 1]]; sigma^2 = .25 adds to the diagonal in DIP-II."""
    mu = np.array([[1.0, 1.0], [-1.0, -1.0]])

    def penalty(of, x):
        code = CODE(jv.Normal(x, jnp.full(2, 0.5)), None, None, None, 3.0)
        return of(code, jax.random.key(0), off_diagonal=10.0, diagonal=100.0)

    batch = lambda of: jax.jit(jax.vmap(partial(penalty, of), axis_name="batch"))(mu)
    assert close(batch(jv.regularizers.dip_1_penalty), np.full(2, 3.0 + 10 * 2))
    assert close(batch(jv.regularizers.dip_2_penalty), np.full(2, 3.0 + 10 * 2 + 100 * 2 * 0.25**2))
    full = lambda x: jv.MultivariateNormal(x, np.array([[0.5, 9.0], [0.3, 0.4]]))

    def of_full(x):
        code = CODE(full(x), None, None, None, 0.0)
        return jv.regularizers.dip_2_penalty(
            code, jax.random.key(0), off_diagonal=1.0, diagonal=0.0
        )

    of_both = jax.jit(jax.vmap(of_full, axis_name="batch"))(mu)
    assert close(of_both, np.full(2, 2 * (1 + 0.15) ** 2))


def test_a_statistic_of_the_batch_is_one_number_for_all_its_examples(x64):
    """The penalty of every example is the statistic of the gathered arrays."""
    model, xs = linear()
    seen = []

    def penalty(code, key):
        value = jv.regularizers.mmd_penalty(code, key)
        seen.append(value)
        return value

    objective = jv.batched(partial(jv.regularizers.regularized, penalty=penalty, beta=3.0))
    distance, (bound, terms) = mmd_and(objective, model, xs)
    assert jax.typeof(seen[0]).shape == ()
    assert close(-(bound + np.mean(terms.distortion)) / 3.0, distance)


def mmd_and(objective, model, xs):
    """The MMD of the draws that the key gives, and the objective at the same key."""

    @jax.jit
    def both(a, b):
        pairs = jax.vmap(jax.random.split)(jax.random.split(a, len(xs)))
        z = jax.vmap(lambda key, x: model.encode(x).sample(key))(pairs[:, 0], xs)
        y = jax.vmap(model.prior.sample)(pairs[:, 1])
        return jv.regularizers.mmd(z, y), objective(model, b, xs)

    return jax.tree.map(np.asarray, both(jax.random.key(0), jax.random.key(0)))


def test_info_vae_by_hand(x64):
    """(1 - alpha) rate + (alpha + lambda - 1) MMD, at the draws that the keys give."""
    model, xs = linear()
    penalty = partial(jv.regularizers.info_penalty, alpha=0.3, weight=5.0)
    objective = jv.batched(partial(jv.regularizers.regularized, penalty=penalty, beta=2.0))
    distance, (bound, terms) = mmd_and(objective, model, xs)
    assert distance > 0.01
    charged = 0.7 * np.mean(terms.rate) + 4.3 * distance
    assert close(bound, -np.mean(terms.distortion) - 2.0 * charged)


MEANS = {
    "capacity": partial(jv.regularizers.capacity, capacity=2.0),
    "free bits": partial(jv.regularizers.free_bits, free_nats=0.5),
    "free bits by group": partial(
        jv.regularizers.free_bits,
        free_nats=0.5,
        parts=partial(jv.regularizers.kl_per_group, groups=np.array([0, 1, 0])),
    ),
    "free bits by level": partial(
        jv.regularizers.free_bits, free_nats=0.5, parts=jv.regularizers.kl_per_level
    ),
}
COMPARISONS = {
    "DIP-I": partial(jv.regularizers.dip_1_penalty, off_diagonal=10.0, diagonal=100.0),
    "DIP-II": partial(jv.regularizers.dip_2_penalty, off_diagonal=10.0, diagonal=100.0),
    "InfoVAE": partial(jv.regularizers.info_penalty, alpha=0.5, weight=10.0),
    "MMD": jv.regularizers.mmd_penalty,
    "sliced": jv.regularizers.sliced_penalty,
    "total correlation": partial(jv.regularizers.tc_penalty, dataset_size=9),
    "total correlation, weighted": partial(
        jv.regularizers.tc_penalty, dataset_size=9, weighting=jv.evaluation.minibatch_weighted
    ),
    "total correlation, full": partial(
        jv.regularizers.tc_penalty, dataset_size=1, weighting=jv.evaluation.full_batch
    ),
}


@pytest.mark.parametrize("name", MEANS | COMPARISONS)
def test_a_statistic_of_a_batch_asks_for_one(name):
    """Neither one example alone nor `jax.vmap` by hand makes a batch; nor one row, to compare."""
    model, xs = linear()
    objective = partial(jv.regularizers.regularized, penalty=(MEANS | COMPARISONS)[name])
    with pytest.raises(ValueError, match=r"call jaxvae.batched\(objective\)"):
        jax.eval_shape(objective, model, jax.random.key(0), xs[0])
    with pytest.raises(ValueError, match=r"call jaxvae.batched\(objective\)"):
        jax.eval_shape(jax.vmap(objective, (None, None, 0)), model, jax.random.key(0), xs)
    if name in COMPARISONS:
        with pytest.raises(ValueError, match="batched: xs has 1 row, expected at least 2"):
            jax.eval_shape(jv.batched(objective), model, jax.random.key(0), xs[:1])


def test_dip_2_refuses_what_has_no_covariance():
    code = CODE(jv.StudentT(3.0, np.zeros(2), np.ones(2)), None, None, None, 0.0)
    with pytest.raises(TypeError, match="dip_2_penalty: StudentT has no covariance; add"):
        jv.regularizers.dip_2_penalty(code, jax.random.key(0), off_diagonal=1.0, diagonal=1.0)


# --- constraints ------------------------------------------------------------------------------

X = np.random.default_rng(3).normal(size=(64, 4)) * np.array([[2.0, 1.0, 0.3, 0.1]])
X = X.astype(np.float32)


def settle(objective, steps=2000, **hyper):
    """The linear model trained until its multiplier rests."""
    model, _ = linear(seed=1, d=2)
    constrained = jv.regularizers.Constrained(model, jnp.zeros(()))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-2, steps))
    step = partial(jv.train_step(objective, optimizer), **hyper)
    order = np.tile(np.arange(64), (steps, 1))
    run = jax.jit(jv.training.scan_steps(step))
    _, metrics = run(jv.init_state(constrained, optimizer), jax.random.key(0), X, order)
    return {name: np.asarray(values[-100:]) for name, values in metrics.items()}


@pytest.mark.parametrize(
    ("objective", "target"),
    [(jv.regularizers.geco, {"tolerance": 5.0}), (jv.regularizers.target_rate, {"target": 1.5})],
)
def test_the_multiplier_converges_and_the_constraint_is_met(objective, target):
    late = settle(objective, **target)
    [(name, wanted)] = target.items()
    met = late["rate" if name == "target" else "distortion"].mean()
    assert abs(met - wanted) < 0.02 * wanted
    assert late["multiplier"].std() < 0.02 * late["multiplier"].mean()
    assert 0.1 < late["multiplier"].mean() < 10.0


def test_the_multiplier_ascends_where_the_model_descends(x64):
    model, xs = linear()
    constrained = jv.regularizers.Constrained(model, np.log(2.0))

    def weighed(model, key):
        _, terms = jv.elbo(model, key, xs[0])
        return terms.rate + 2.0 * terms.distortion, terms

    @jax.jit
    def gradients(a, b, tolerance):
        loss = lambda m: -jv.regularizers.geco(m, a, xs[0], tolerance=tolerance)[0]
        return jax.grad(loss)(constrained), jax.grad(weighed, has_aux=True)(model, b)

    for tolerance in (1e6, -1e6):
        keys = jax.random.key(0), jax.random.key(0)
        gradient, (expected, terms) = gradients(*keys, tolerance)
        assert close(gradient.log_multiplier, -2.0 * (np.asarray(terms.distortion) - tolerance))
        assert same(gradient.model, expected)


def test_a_target_rate_by_hand(x64):
    """The distortion, and lambda = 2 of the rate above 1.5; lambda's gradient is its own excess."""
    model, xs = linear()
    constrained = jv.regularizers.Constrained(model, np.log(2.0))

    def weighed(model, key):
        _, terms = jv.elbo(model, key, xs[0])
        return terms.distortion + 2.0 * terms.rate, terms

    def minus(constrained, key):
        value, terms = jv.regularizers.target_rate(constrained, key, xs[0], target=1.5)
        return -value, terms

    @jax.jit
    def both(a, b):
        ours = jax.value_and_grad(minus, has_aux=True)(constrained, a)
        return ours, jax.grad(weighed, has_aux=True)(model, b)

    found = both(jax.random.key(0), jax.random.key(0))
    ((value, aux), gradient), (expected, terms) = jax.tree.map(np.asarray, found)
    assert close(value, terms.distortion + 2.0 * (terms.rate - 1.5))
    assert close(aux, [terms.distortion, terms.rate, 2.0])
    assert close(gradient.log_multiplier, -2.0 * (terms.rate - 1.5))
    assert same(gradient.model, expected)


def test_a_constrained_model_is_a_model(x64):
    model, xs = linear()
    constrained = jv.regularizers.Constrained(model, jnp.zeros(()))
    bounds = jax.jit(
        lambda a, b: [jv.elbo(m, k, xs[0])[0] for m, k in ((constrained, a), (model, b))]
    )
    assert close(*bounds(jax.random.key(0), jax.random.key(0)))
    with pytest.raises(TypeError, match=r"geco: model is a VAE, expected a Constrained"):
        jv.regularizers.geco(cast(Any, model), jax.random.key(0), xs[0], tolerance=1.0)


@pytest.mark.parametrize("name", ["distortion", "rate", "multiplier", "loss"])
def test_no_hyper_parameter_is_logged_over_a_metric(name):
    model, xs = linear()
    constrained, optimizer = jv.regularizers.Constrained(model, jnp.zeros(())), optax.sgd(0.1)
    state = jv.init_state(constrained, optimizer)

    def named(model, key, x, **hyper):
        return jv.regularizers.geco(model, key, x, tolerance=hyper[name])

    step = jax.jit(jv.train_step(named, optimizer))
    match = f"train_step: {name} is both a hyper-parameter and a metric of the objective"
    with pytest.raises(ValueError, match=match):
        step(state, jax.random.key(0), xs, **{name: 2.0})
    bound = jv.train_step(partial(named, **{name: 2.0}), optimizer)  # as the message says
    if name == "distortion":
        _, metrics = jax.jit(bound)(state, jax.random.key(0), xs)
        expected = jax.jit(
            lambda key: jv.batched(jv.elbo)(model, jax.random.fold_in(key, 0), xs)[1]
        )
        assert close(metrics["distortion"], np.mean(expected(jax.random.key(0)).distortion))
    else:
        _, metrics = jax.eval_shape(bound, state, jax.random.key(0), xs)
    assert sorted(metrics) == ["distortion", "loss", "multiplier", "rate"]


# --- a committed rate -------------------------------------------------------------------------


@jax.jit
def cheapest(raw, alpha):
    """The KL, in nats, of the independent Gaussians that L-BFGS ends at, from `raw` [2, n]."""
    prior = jv.regularizers.ar1(raw.shape[1], alpha)
    kl = lambda raw: jv.kl_divergence(jv.Normal(raw[0], jnp.exp(raw[1])), prior)
    optimizer = optax.lbfgs()

    def update(carry, _):
        raw, state = carry
        value, gradient = optax.value_and_grad_from_state(kl)(raw, state=state)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            step, state = optimizer.update(
                gradient, state, raw, value=value, grad=gradient, value_fn=kl
            )
        return (optax.apply_updates(raw, step), state), None

    (raw, _), _ = jax.lax.scan(update, (raw, optimizer.init(raw)), length=60)
    return kl(raw)


@pytest.mark.parametrize("alpha", [0.5, -0.3, 0.95])
def test_no_independent_posterior_costs_less_than_the_delta_vae_rate(x64, alpha):
    raw = 0.3 * np.random.default_rng(0).normal(size=(2, 6))
    assert close(cheapest(raw, alpha), jv.regularizers.delta_vae_rate(6, alpha))


def test_an_autoregression_has_unit_variances_and_geometric_covariances(x64):
    slope = jax.jit(jax.jacobian(lambda alpha: jv.regularizers.ar1(4, alpha).scale_tril))(0.0)
    assert close(slope, np.eye(4, k=-1))  # of alpha^1 alone
    scale_tril = np.asarray(jax.jit(lambda: jv.regularizers.ar1(5, 0.7).scale_tril)())
    covariance = scale_tril @ scale_tril.T
    lag = np.abs(np.arange(5)[:, None] - np.arange(5)[None])
    assert close(covariance, 0.7**lag)


# --- schedules --------------------------------------------------------------------------------


def test_sigmoid_annealing_is_the_logistic_curve_between_its_ends(x64):
    schedule = jv.training.sigmoid_annealing(0.2, 0.9, 100, sharpness=8.0)
    values = np.asarray(jax.jit(jax.vmap(schedule))(np.arange(-5, 120)))
    assert close(values[0], 0.2)
    assert close(values[-1], 0.9)
    assert close(schedule(50), 0.55)
    assert np.all(np.diff(values) >= 0)
    share = (values - 0.2) / 0.7
    low, high = expit(-4.0), expit(4.0)
    logits = logit(low + share * (high - low))[6:105]
    assert close(np.diff(logits), np.full(98, 0.08))


@pytest.mark.filterwarnings("error")
def test_a_cyclical_schedule_is_no_warm_up_that_never_ends():
    beta = jv.training.cyclical(optax.linear_schedule(0.0, 1.0, 50), 100)
    assert [float(beta(t)) for t in (0, 25, 50, 99, 100, 125)] == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    warn_if_unfinished("beta", beta, at_steps(beta, 0, 6401))  # which ends where a period starts
    with pytest.warns(UserWarning, match="beta rises to"):
        warn_if_unfinished("beta", beta, at_steps(beta, 0, 10))


def test_schedules_feed_the_traced_beta_and_are_logged():
    model, xs = linear()
    optimizer = optax.adam(1e-3)
    objective = partial(jv.regularizers.regularized, penalty=jv.regularizers.free_bits)
    beta = jv.training.sigmoid_annealing(0.0, 1.0, 4)
    step = partial(jv.train_step(objective, optimizer), beta=beta, free_nats=0.1)
    order = np.zeros((6, 5), int)
    _, metrics = jax.jit(jv.training.scan_steps(step))(
        jv.init_state(model, optimizer), jax.random.key(0), xs, order
    )
    assert close(metrics["beta"], jax.jit(jax.vmap(beta))(np.arange(6)))
    assert close(metrics["free_nats"], np.full(6, 0.1))


@pytest.mark.slow
def test_prices_train_flax_networks():
    rngs = nnx.Rngs(0)
    mlp = partial(nn.MLP, hidden=(8,))
    model = jv.VAE(
        nn.Conditional(mlp, nn.NormalHead(), (4,), (2,), rngs=rngs),
        nn.Conditional(mlp, nn.NormalHead(), (2,), (4,), rngs=rngs),
        jv.StandardNormal((2,)),
    )
    optimizer = optax.adam(1e-2)
    objective = partial(
        jv.regularizers.regularized, penalty=partial(jv.regularizers.tc_penalty, dataset_size=64)
    )
    step = partial(jv.train_step(objective, optimizer), correlation=4.0)
    _, metrics = jax.jit(jv.training.scan_steps(step))(
        jv.init_state(model, optimizer), jax.random.key(0), X, np.tile(np.arange(64), (80, 1))
    )
    assert np.isfinite(metrics["loss"]).all()
    assert np.mean(metrics["loss"][-10:]) < np.mean(metrics["loss"][:10])
