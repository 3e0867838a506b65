"""Levels alike: a scan of stacked blocks is what its blocks are one by one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.models import Alike, Block, TopDown, deep_elbo
from jaxvae.regularizers.penalties import LatentSample, kl_per_level
from tests.common import close, draws

L, D = 3, 2
X = np.array([0.3, -1.0], np.float32)


def key():
    return jax.random.key(0)


def conditional(rngs, n=D):
    small = partial(nn.MLP, hidden=(3,), activation=jnp.tanh)
    return nn.Conditional(small, nn.NormalHead(), (n,), (D,), rngs=rngs)


def of_both(network, pair):
    return network(jnp.concatenate(pair))


def added(network, pair):
    return pair[0] + network(jnp.concatenate(pair))


def block(*, rngs):
    merge = nn.MLP((2 * D,), (D,), hidden=(3,), rngs=rngs)
    both = conditional(rngs, 2 * D)
    return Block(conditional(rngs), Partial(of_both, both), Partial(added, merge))


def once(x):
    return (jnp.sin(x),)


def each(x):
    return (jnp.sin(x),) * L


def unit(h):
    return jv.Normal(h, jnp.full_like(h, 0.7))


@cache
def models():
    """The same levels as data, as data and computed again, and one by one."""
    make = jax.jit(lambda: nn.alike(block, L, rngs=nnx.Rngs(0)).each)
    stack, start = make(), np.array([0.5, -0.2], np.float32)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(L)]
    one = TopDown(Partial(once), start, [Alike(stack)], Partial(unit))
    return (
        one,
        one._replace(blocks=[Alike(stack, remat=True)]),
        one._replace(up=Partial(each), blocks=apart),
    )


def by_hand(model):
    h, at, kls = model.start, key(), []
    for block, features in zip(model.blocks, model.up(X), strict=True):
        here, at = jax.random.split(at)
        p, q = block.prior(h), block.posterior((h, features))
        h = block.merge((h, q.sample(here)))
        kls.append(jv.kl_divergence(q, p))
    distortion, levels = -model.likelihood(h).log_prob(X), jnp.stack(kls)
    rate = jnp.sum(levels)
    return -(distortion + 0.7 * rate), jv.models.DeepTerms(distortion, rate, levels)


def in_one_way(model):
    return deep_elbo(model, key(), X, beta=0.7)


def bound_and_gradient(bound, model):
    return jax.value_and_grad(bound, has_aux=True)(model)


@pytest.mark.thorough
def test_value_and_gradient_are_those_of_the_levels_one_by_one():
    alike, again, apart = models()
    pairs = (by_hand, apart), (in_one_way, apart), (in_one_way, alike), (in_one_way, again)
    results = jax.jit(
        lambda models: [bound_and_gradient(f, m) for (f, _), m in zip(pairs, models, strict=True)]
    )
    (exact, expected), (looped, slope), *scanned = results([model for _, model in pairs])
    assert np.all(exact[1].levels > 1e-3)
    assert all(jax.tree.leaves(jax.tree.map(close, (looped, slope), (exact, expected))))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected.blocks)
    for value, at in scanned:
        assert all(jax.tree.leaves(jax.tree.map(close, value, exact)))
        assert all(jax.tree.leaves(jax.tree.map(close, at.blocks[0].each, stacked)))
        assert close(at.start, expected.start)


def test_remat_computes_the_inside_again():
    counts = [
        str(jax.make_jaxpr(partial(bound_and_gradient, in_one_way))(model)).count(" tanh ")
        for model in models()[:2]
    ]
    assert counts[1] > counts[0]


def test_remat_takes_less_memory():
    layers = nn.alike(partial(nn.MLP, (64,), (64,), hidden=(256,)), 8, rngs=nnx.Rngs(0))

    def taken(remat):
        def loss(each, xs):
            return jnp.sum(jax.vmap(Alike(each, remat=remat))(xs))

        program = jax.jit(jax.grad(loss)).lower(layers.each, jnp.ones((512, 64))).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert taken(remat=True) < taken(remat=False) / 2


def test_without_jit_it_is_the_same():
    model = models()[0]
    bound, terms = deep_elbo(model, key(), X)
    compiled, same = jax.jit(deep_elbo)(model, key(), X)
    assert close(bound, compiled)
    assert close(terms.levels, same.levels)


def test_every_part_of_the_model_is_that_of_the_levels_one_by_one():
    def both(alike, apart):
        q, p, x = alike.encode(X), alike.prior, alike.decode
        z, log_q = jv.sample_and_log_prob(q, key())
        code = LatentSample(q, p, z, log_q, log_q)
        found = log_q, q.log_prob(z), p.log_prob(z), jv.auto_kl(q, p, z, log_q), x(z).mean()
        q, p, nested = apart.encode(X), apart.prior, (z[0], (z[1], z[2]))
        again = LatentSample(q, p, nested, log_q, log_q)
        log_q, log_p = q.log_prob(nested), p.log_prob(nested)
        rate = jv.analytic_kl(q, p, nested, log_q)
        exact = log_q, log_q, log_p, rate, apart.decode(nested).mean()
        return zip((*found, kl_per_level(code)), (*exact, kl_per_level(again)), strict=True)

    alike, _, apart = models()
    for found, exact in jax.jit(lambda *m: list(both(*m)))(alike, apart):
        assert close(found, exact)


def test_draws_of_the_prior_are_of_its_levels():
    """z_1 ~ N(0, s_1^2), z_2 ~ N(z_1, s_2^2), z_3 ~ N(z_1 + z_2, s_3^2); tempered, of t s."""
    scales = np.array([[1.0], [0.5], [0.8]], np.float32)
    add = Partial(lambda pair: pair[0] + pair[1])
    stack = Alike(Block(Partial(lambda s, h: jv.Normal(h, s), scales), add, add))
    down = np.array([[1, 0, 0], [1, 1, 0], [2, 1, 1]])  # z of the noise of each level
    for p, t in ((stack.prior(jnp.zeros(1)), 1.0), (stack.prior(jnp.zeros(1)).tempered(0.5), 0.5)):
        z = draws(lambda at, p=p: p.sample(at)[:, 0], 20_000)
        exact = t**2 * down @ np.diag(scales[:, 0] ** 2) @ down.T
        assert np.all(np.abs(np.mean(z, axis=0)) < 4 * np.sqrt(np.diag(exact) / len(z)))
        error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / len(z))
        assert np.all(np.abs(np.cov(z.T) - exact) < 4 * error)
    assert stack.prior(jnp.zeros(1)).reparameterized


def test_what_follows_the_last_follows_it_once():
    double = Partial(lambda h: 2.0 * h)
    layers = Partial(lambda a, x: x + a, np.array([1.0, 2.0], np.float32))
    assert float(Alike(layers, then=double)(jnp.float32(3.0))) == 12.0
    *_, model = models()
    alike = models()[0]
    last = alike.blocks[0].each
    grown = alike._replace(blocks=[Alike(last, then=double)])
    behind = model._replace(likelihood=Partial(lambda h: unit(2.0 * h)))
    found, exact = jax.jit(lambda a, b: (deep_elbo(a, key(), X)[0], deep_elbo(b, key(), X)[0]))(
        grown, behind
    )
    assert close(found, exact)


def test_a_level_without_a_path_has_a_value_and_no_gradient():
    coin = Partial(lambda w, h: jv.Bernoulli(h * w), np.ones(L, np.float32))
    of_pair = Partial(lambda w, pair: jv.Bernoulli(pair[0] * w + pair[1]), np.ones(L, np.float32))
    stack = Alike(Block(coin, of_pair, Partial(lambda pair: pair[0] + pair[1])))
    model = TopDown(Partial(once), np.zeros(D, np.float32), [stack], Partial(unit))
    assert not model.encode(X).reparameterized
    assert np.isfinite(jax.jit(deep_elbo)(model, key(), X)[0])
    with pytest.raises(TypeError, match="samples of Bernoulli have no derivative"):
        jax.eval_shape(jax.grad(lambda m: deep_elbo(m, key(), X)[0]), model)


def with_dropout(*, rngs):
    return nn.MLP((D,), (D,), hidden=(64,), dropout=0.5, rngs=rngs)


def test_each_level_drops_its_own():
    """Of equal layers, each beside the others: with one key they would drop the same."""
    from jaxvae.pytrees.libraries import functional
    from jaxvae.pytrees.networks import in_training

    layers = jax.jit(lambda: nn.alike(with_dropout, L, rngs=nnx.Rngs(0)).each)()
    same = jax.tree.map(lambda leaf: leaf if leaf.dtype != X.dtype else 0 * leaf + leaf[:1], layers)
    network = in_training(functional(Alike(same)), key())
    _, found = jax.jit(lambda n: n.scan(lambda x, layer: (x, layer(x)), jnp.asarray(X)))(network)
    assert len({row.tobytes() for row in np.asarray(found)}) == L


def test_made_in_a_program_or_outside_they_are_the_same():
    def make():
        return nn.alike(with_dropout, 2, rngs=nnx.Rngs(0))

    inside, outside = jax.tree.leaves(jax.jit(make)().each), jax.tree.leaves(make().each)
    for a, b in zip(inside, outside, strict=True):
        assert a.shape == b.shape
        assert jnp.issubdtype(a.dtype, jax.dtypes.prng_key) or close(a, b)


def test_refusals():
    def norm(*, rngs):
        return nn.MLP((D,), (D,), norm=nnx.BatchNorm, rngs=rngs)

    of = Partial(lambda a, x: a[0] + x, (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match="each has leading axes"):
        Alike(of)(jnp.ones(D))
    for nothing in ((), jnp.sin, jnp.ones(())):
        with pytest.raises(ValueError, match=r"each is .* without leaves that are stacked"):
            Alike(Partial(nothing) if callable(nothing) else nothing)(jnp.ones(D))
    with pytest.raises(ValueError, match="count is 0"):
        nn.alike(norm, 0, rngs=nnx.Rngs(0))
    normed = jax.eval_shape(lambda: nn.alike(norm, 2, rngs=nnx.Rngs(0)))
    from jaxvae.pytrees.libraries import functional

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), normed)
    with pytest.raises(ValueError, match="each holds running statistics"):
        functional(zeros)(jnp.ones(D))
    with pytest.raises(TypeError, match="model is a VAE, expected a TopDown"):
        deep_elbo(jv.VAE(unit, unit, jv.StandardNormal((D,))), key(), X)
    with pytest.raises(ValueError, match="event has leading axes"):
        models()[0].prior.log_prob(jnp.ones((L + 1, D)))
