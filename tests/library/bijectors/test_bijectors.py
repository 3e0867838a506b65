"""Laws of every bijector: it inverts, and its log-determinant is that of its Jacobian."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_probability.substrates.jax.bijectors as tfb
from flax import nnx
from jax.tree_util import Partial
from scipy import special

import jaxvae as jv
from jaxvae import bijectors, nn
from tests.common import close, is_differentiable

D = 5


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def normal(seed, *shape):
    """In the precision of the test."""
    return jnp.asarray(numbers(seed, *shape), jnp.result_type(float))


def trained(make):
    """A network whose parameters are not where they start."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(make))
    moved = [0.5 * numbers(100 + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, map(jnp.asarray, moved))


def autoregressive(**kwargs):
    return trained(lambda: nn.AutoregressiveFlow(D, hidden=(6,), rngs=nnx.Rngs(0), **kwargs))


def coupling(**kwargs):
    return trained(lambda: nn.CouplingFlow(D, layers=3, hidden=(7,), rngs=nnx.Rngs(0), **kwargs))


SPLINE = jv.bijectors.SplineTransformer(4, 2.0)
OBJECTS: dict[str, Callable[[], Any]] = {
    "affine": lambda: jv.bijectors.Affine(normal(1, D), normal(2, D)),
    "affine, scalar": lambda: jv.bijectors.Affine(jnp.array(0.3), jnp.array(-0.5)),
    "spline": lambda: SPLINE(normal(3, D, SPLINE.size)),
    "reverse": lambda: jv.bijectors.Reverse(),
    "chain": lambda: jv.bijectors.Chain(
        (jv.bijectors.Affine(normal(1, D), normal(2, D)), jv.bijectors.Reverse())
    ),
    "empty chain": lambda: jv.bijectors.Chain(()),
    "inverse autoregressive": lambda: autoregressive()(),
    "inverse autoregressive, spline and context": lambda: autoregressive(
        context=3, transformer=SPLINE
    )(normal(4, 3)),
    "masked autoregressive": lambda: jv.bijectors.Inverse(autoregressive()()),
    "coupling": lambda: coupling()(),
    "coupling, spline and context": lambda: coupling(context=3, transformer=SPLINE)(normal(4, 3)),
    "planar": lambda: jv.bijectors.Planar(normal(1, D), normal(2, D), normal(3)),
    "planar, folded back": lambda: jv.bijectors.Planar(
        -3.0 * normal(2, D), normal(2, D), normal(3)
    ),
    "radial, out": lambda: jv.bijectors.Radial(normal(1, D), normal(2), jnp.array(1.5)),
    "radial, in": lambda: jv.bijectors.Radial(normal(1, D), normal(2), jnp.array(-2.5)),
    "sylvester": lambda: jv.bijectors.Sylvester(
        normal(1, 3, D), 2.0 * normal(2, 4, 4), 2.0 * normal(3, 4, 4), normal(4, 4)
    ),
    "householder": lambda: jv.bijectors.Householder(normal(1, D)),
}
everyone = pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
LARGE = {name for name in OBJECTS if "spline and" in name}  # made of what other rows have
most = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=pytest.mark.slow if name in LARGE else ())
        for name, make in OBJECTS.items()
    ],
)


def points():
    return [jnp.asarray(numbers(10 + i, D) * (0.5 + i)) for i in range(4)]


def test_every_bijector_has_a_row():
    def kinds(b):
        inner = {
            jv.bijectors.Chain: lambda: b.bijectors,
            jv.bijectors.Inverse: lambda: (b.bijector,),
        }
        return {type(b)}.union(*(kinds(part) for part in inner.get(type(b), tuple)()))

    public = {thing for thing in vars(bijectors).values() if hasattr(thing, "forward_and_log_det")}
    assert public == set().union(*(kinds(jax.eval_shape(make)) for make in OBJECTS.values()))
    assert len(public) == 11


@pytest.mark.thorough
@most
def test_it_inverts_and_its_log_det_is_that_of_the_jacobian(make, x64):
    """inverse(forward(z)) = z = forward(inverse(z)); the log-determinants cancel, and are those
    of both Jacobians."""
    b = make()

    @jax.jit
    @jax.vmap
    def both(z):
        found = []
        for there, back in (
            (b.forward_and_log_det, b.inverse_and_log_det),
            (b.inverse_and_log_det, b.forward_and_log_det),
        ):
            slope, (x, log_det) = jax.jacobian(lambda z, f=there: (f(z)[0], f(z)), has_aux=True)(z)
            found.append((x, log_det, slope, *back(x)))
        return found

    zs = jnp.stack(points())
    for _, log_det, jacobian, back, back_log_det in both(zs):
        assert np.allclose(back, zs, rtol=1e-8, atol=1e-8)
        assert np.allclose(log_det, -back_log_det, rtol=1e-8, atol=1e-8)
        assert np.allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-8)
        assert log_det.shape == (len(zs),)


@pytest.mark.thorough
@most
def test_parameters_have_right_gradients(make, x64):
    """Of both directions, against finite differences: a root's gradient too."""
    leaves, structure = jax.tree.flatten(make())
    train = [i for i, leaf in enumerate(leaves) if leaf.size < 40][:4]  # some of a network's do
    z, x = points()[:2]

    def both(chosen):
        changed = dict(zip(train, chosen, strict=True))
        b = jax.tree.unflatten(structure, [changed.get(i, leaf) for i, leaf in enumerate(leaves)])
        return b.forward_and_log_det(z), b.inverse_and_log_det(x)

    if train:
        assert is_differentiable(both, [leaves[i] for i in train])


@pytest.mark.thorough
@most
def test_vmap_is_a_loop(make):
    b, zs = make(), jnp.stack(points())
    both = lambda z: (b.forward_and_log_det(z), b.inverse_and_log_det(z))
    mapped, looped = jax.jit(lambda zs: (jax.vmap(both)(zs), jax.lax.map(both, zs)))(zs)
    for leaf, other in zip(*map(jax.tree.leaves, (mapped, looped)), strict=True):
        assert np.allclose(leaf, other, rtol=1e-3, atol=1e-3)


ZERO = {
    "planar": lambda: jv.bijectors.Planar(jnp.zeros(D), jnp.zeros(D), jnp.zeros(())),
    "radial": lambda: jv.bijectors.Radial(jnp.zeros(D), jnp.zeros(()), jnp.zeros(())),
    "sylvester": lambda: jv.bijectors.Sylvester(
        jnp.ones((1, D)), jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.zeros(2)
    ),
    "householder": lambda: jv.bijectors.Householder(jnp.zeros(D)),
    "affine": lambda: jv.bijectors.AffineTransformer()(jnp.zeros((D, 2))),
    "spline": lambda: SPLINE(jnp.zeros((D, SPLINE.size))),
    "inverse autoregressive": lambda: nn.AutoregressiveFlow(D, layers=3, rngs=nnx.Rngs(0))(),
    "coupling": lambda: nn.CouplingFlow(D, layers=3, rngs=nnx.Rngs(0))(),
}


@pytest.mark.thorough
@pytest.mark.parametrize("make", ZERO.values(), ids=ZERO)
def test_zero_parameters_are_the_identity(make):
    """A flow posterior with zero weights is its base, in density too; its gradients are finite, as
    training starts there."""

    @jax.jit
    def both(loc, key, point):
        b, base = make(), jv.Normal(loc, jnp.full(D, 0.5))
        z, log_q = jv.sample_and_log_prob(jv.Transformed(base, b), key)
        gradient = jax.grad(lambda b: jnp.sum(b.forward_and_log_det(point)[0]))(b)
        return (z, log_q), (base.sample(jax.random.clone(key)), base.log_prob(z)), gradient

    found, exact, gradient = both(normal(1, D), jax.random.key(0), points()[0])
    for a, b in zip(found, exact, strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


# values: what the laws above say of any bijector does not say which it is


def onto_minus_one(a):
    """log(1 + (e - 1) e^a) - 1."""
    return np.log1p((np.e - 1.0) * np.exp(a)) - 1.0


def maps(b, z, x):
    """Whether it takes z to x."""
    return close(jax.jit(b.forward_and_log_det)(z)[0], x)


def test_planar_and_radial_are_the_formulas(x64):
    z, u, w = points()[0], normal(1, D), normal(2, D)
    moved = u + (onto_minus_one(w @ u) - w @ u) * w / (w @ w)
    assert maps(jv.bijectors.Planar(u, w, jnp.array(0.4)), z, z + moved * np.tanh(w @ z + 0.4))
    alpha, r = np.log1p(np.exp(0.3)), np.linalg.norm(z - u)
    beta = alpha * onto_minus_one(-1.2)
    radial = jv.bijectors.Radial(u, jnp.array(0.3), jnp.array(-1.2))
    assert maps(radial, z, z + beta * (z - u) / (alpha + r))


def test_reflections_are_the_formulas(x64):
    """Q is the first columns of the product of the reflections, the last row's to the left."""
    z, v = points()[0], np.asarray(normal(1, 3, D))
    reflections = [np.eye(D) - 2.0 * np.outer(row, row) / (row @ row) for row in v]
    assert maps(jv.bijectors.Householder(jnp.asarray(v[0])), z, reflections[0] @ z)
    r, r_tilde = (np.triu(normal(seed, 4, 4)) for seed in (2, 3))
    raw = jnp.asarray(r), jnp.asarray(r_tilde) + jnp.tril(jnp.ones((4, 4)), -1)  # ignored
    for matrix in (r, r_tilde):
        np.fill_diagonal(matrix, np.tanh(np.diag(matrix)))
    q = (reflections[2] @ reflections[1] @ reflections[0])[:, :4]
    b = normal(4, 4)
    exact = z + q @ r @ np.tanh(r_tilde @ q.T @ z + b)
    assert maps(jv.bijectors.Sylvester(jnp.asarray(v), *raw, b), z, exact)


def test_affine_maps_and_those_of_raw_numbers(x64):
    z, raw = points()[0], normal(1, D, 2)
    assert maps(jv.bijectors.Affine(raw[:, 0], raw[:, 1]), z, raw[:, 0] + np.exp(raw[:, 1]) * z)
    exact = raw[:, 0] + np.exp(2.0 * np.tanh(raw[:, 1] / 2.0)) * z
    assert maps(jv.bijectors.AffineTransformer()(raw), z, exact)


@pytest.mark.thorough
def test_the_spline_is_tensorflow_probabilitys(x64):
    """Widths, heights and slopes of the raw numbers, in this order; value and log-determinant."""
    raw, z = normal(3, D, SPLINE.size), jnp.array([-1.9, -0.6, 0.1, 0.7, 1.4])
    share = special.softmax(np.asarray(raw)[:, :8].reshape(D, 2, 4), axis=-1)
    bins = 4.0 * (1e-3 + (1.0 - 4e-3) * share)
    slopes = 1e-3 + (1.0 - 1e-3) * np.log1p((np.e - 1.0) * np.exp(raw[:, 8:]))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = tfb.RationalQuadraticSpline(bins[:, 0], bins[:, 1], slopes, range_min=-2)
        exact = theirs.forward(z), theirs.forward_log_det_jacobian(z, event_ndims=1)
    ours = jax.jit(lambda raw, z: SPLINE(raw).forward_and_log_det(z))(raw, z)
    assert all(map(close, ours, exact))


def layers_of(flow, context, layer, x):
    """x through a flow's layers written out, back to front in between, for a context."""
    for i, conditioner in enumerate(flow.conditioners):
        x = layer(conditioner, context, x[::-1] if i else x)
    return x


def by_hand(raw, z):
    return raw[:, 0] + jnp.exp(2.0 * jnp.tanh(raw[:, 1] / 2.0)) * z


def test_flows_are_their_layers(x64):
    """An affine map each, of what comes before, or of the second half by the first; so are the
    inverse of one, and the head that cuts a flow's context from what a network gives."""
    c = normal(4, 3)

    def autoregression(conditioner, context, z):
        return by_hand(conditioner(z, context), z)

    def coupled(conditioner, context, z):
        return jnp.append(z[:2], by_hand(conditioner(z[:2], context), z[2:]))

    flows = (autoregressive(context=3), autoregression), (coupling(context=3), coupled)
    raw = normal(5, 2 * D)
    for flow, layer in flows:
        head = nn.FlowHead(nn.NormalHead(), flow, 3)
        assert head.raw_shape((D,)) == (2 * D + 3,)

        @jax.jit
        def both(c, key, flow=flow, head=head, layer=layer):
            eps = jv.StandardNormal((D,)).sample(jax.random.clone(key))
            base = raw[:D] + (jnp.log1p(jnp.exp(raw[D:])) + 1e-6) * eps
            forward, _ = flow(c).forward_and_log_det(base)
            of_inverse, _ = nn.InverseFlow(flow)(c).inverse_and_log_det(base)
            found = forward, of_inverse, head(jnp.append(raw, c)).sample(key)
            return layers_of(flow, c, layer, base), found

        exact, found = both(c, jax.random.key(0))
        assert all(close(x, exact) for x in found)


def test_a_masked_network_by_hand(x64):
    """Three coordinates, hidden units of degrees 0, 1, 0: unit m sees z_j to j = m, and row i of
    the output the units of degrees below i; the context is added to both layers."""
    net: Any = trained(
        lambda: nn.MaskedMLP(3, 2, hidden=(3,), context=2, activation=jnp.tanh, rngs=nnx.Rngs(0))
    )
    z, c, degrees = numbers(1, 3), numbers(2, 2), (0, 1, 0)
    layers = net.layers[0], net.contexts[0], net.last, net.last_context
    hidden, given, last, last_given = (np.asarray(layer.kernel[...]) for layer in layers)
    bias, last_bias = (np.asarray(layer.bias[...]) for layer in (net.layers[0], net.last))
    h = [
        np.tanh(sum(z[j] * hidden[j, u] for j in range(m + 1)) + c @ given[:, u] + bias[u])
        for u, m in enumerate(degrees)
    ]
    exact = [
        [
            sum(h[u] * last[u, 2 * i + s] for u, m in enumerate(degrees) if m < i)
            + last_bias[2 * i + s]
            + c @ last_given[:, 2 * i + s]
            for s in range(2)
        ]
        for i in range(3)
    ]
    assert close(jax.jit(net)(z, c), exact)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("hidden", [(), (7,), (4, 9)])
def test_masked_network_sees_what_comes_before(context, hidden):
    """Row i of the output has a derivative in z_j exactly for j < i, and each in the context."""
    how = {"hidden": hidden, "context": context, "activation": jnp.tanh}
    net = trained(lambda: nn.MaskedMLP(D, 2, rngs=nnx.Rngs(0), **how))
    c = normal(5, context) if context else None
    out = lambda z, c: jax.nn.softplus(net(z, c))
    seen, *given = jax.jit(jax.jacobian(out, (0, 1) if context else (0,)))(normal(4, D), c)
    depends = np.abs(seen).sum(axis=1) > 0
    assert not np.triu(depends).any()
    if hidden:
        assert np.array_equal(depends, np.tril(np.ones((D, D), bool), -1))
    if context:
        assert np.all(np.abs(given[0]).sum(axis=(1, 2)) > 0)


def test_one_coordinate_is_told_its_context():
    """The first has nothing before it: without the context a flow of one would be told nothing."""
    flow = trained(lambda: nn.AutoregressiveFlow(1, context=3, rngs=nnx.Rngs(0)))
    x, y = (flow(c).forward_and_log_det(jnp.ones(1))[0] for c in (jnp.zeros(3), jnp.ones(3)))
    assert not close(x, y)


def test_the_inverse_does_not_feed_on_what_is_not_known_yet():
    """z_i = x_i + 2 z_{i-1} - z_{i-2}, 200 of them: a wrong z_j behind i would overflow."""
    d = 200
    net: Any = nn.MaskedMLP(d, 2, hidden=(), rngs=nnx.Rngs(0))
    at, kernel = np.arange(d), np.zeros((d, d, 2), np.float32)
    kernel[at[:-1], at[1:], 0], kernel[at[:-2], at[2:], 0] = -2.0, 1.0
    net.last.kernel[...] = jnp.asarray(kernel.reshape(d, 2 * d))
    flow, z = jv.bijectors.InverseAutoregressive(net), jnp.sin(at / 9.0)
    x, log_det = flow.forward_and_log_det(z)
    back, other = flow.inverse_and_log_det(x)
    np.testing.assert_allclose(back, z, atol=1e-2)
    np.testing.assert_allclose(other, -log_det, rtol=1e-5)


def test_the_other_way_takes_integers_and_half_precision():
    flow = trained(lambda: nn.AutoregressiveFlow(D, rngs=nnx.Rngs(0)))()
    exact, _ = flow.inverse_and_log_det(jnp.arange(D, dtype=float))
    for dtype in (int, jnp.bfloat16):
        with jax.numpy_dtype_promotion("standard"):
            found, _ = flow.inverse_and_log_det(jnp.arange(D, dtype=dtype))
        assert close(found, exact)


def test_few_hidden_units_are_spread_over_all_coordinates():
    """Four units for nine coordinates: the last row still sees most of what comes before it."""
    net = trained(lambda: nn.MaskedMLP(9, 1, hidden=(4,), activation=jnp.tanh, rngs=nnx.Rngs(0)))
    depends = np.abs(jax.jit(jax.jacobian(net))(normal(4, 9)))[:, 0] > 0
    assert not np.triu(depends).any()
    assert depends[-1].sum() == 7


def test_an_autoregressive_posterior_trains_in_one_pass_a_layer():
    """Sampling with density calls each conditioner once; so does scoring by its inverse."""
    calls = []

    def conditioner(z, context):
        calls.append(z)
        return jnp.zeros((D, 2))

    layers = jv.bijectors.Chain(
        tuple(jv.bijectors.InverseAutoregressive(Partial(conditioner)) for _ in range(3))
    )
    jv.sample_and_log_prob(jv.Transformed(jv.StandardNormal((D,)), layers), jax.random.key(0))
    assert len(calls) == 3
    jv.Transformed(jv.StandardNormal((D,)), jv.bijectors.Inverse(layers)).log_prob(jnp.ones(D))
    assert len(calls) == 6


def test_wrong_sizes_are_errors():
    wide = jv.bijectors.Sylvester(normal(1, 1, 2), normal(2, 3, 3), normal(3, 3, 3), normal(4, 3))
    with pytest.raises(ValueError, match="Sylvester: b has 3 entries, expected at most the 2"):
        wide.forward_and_log_det(jnp.ones(2))
    with pytest.raises(ValueError, match="dim is 1, expected at least 2"):
        nn.CouplingFlow(1, rngs=nnx.Rngs(0))
    net = nn.MaskedMLP(D, 2, context=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"context has shape \(0,\), expected \(3,\)"):
        net(jnp.ones(D))
    with pytest.raises(ValueError, match=r"z has shape \(4,\), expected \(5,\)"):
        net(jnp.ones(4), jnp.ones(3))


@pytest.mark.thorough
def test_spline_is_the_identity_outside(x64):
    z = jnp.array([-2.5, 2.5, -9.0, 9.0, 2.0])
    x, _ = SPLINE(normal(3, D, SPLINE.size)).forward_and_log_det(z)
    assert close(x, z)


def test_affine_transformer_is_bounded():
    _, log_det = jv.bijectors.AffineTransformer()(jnp.full((1, 2), 1e4)).forward_and_log_det(
        jnp.ones(1)
    )
    assert float(log_det) == 2.0


def test_a_spline_inverts_within_a_rounding_of_its_knots():
    """In float32 and at slopes a thousand times apart: finite, the inverse, and of slope 1 / f'.

    The usual discriminant is a difference of two near numbers there, and negative at times."""
    transformer = jv.bijectors.SplineTransformer()
    raw = jnp.asarray(5.0 * numbers(5, 300, transformer.size))
    spline = jax.jit(transformer)(raw)
    half = 0.5 * np.sum(np.asarray(spline.widths), axis=1, keepdims=True)
    knots = np.cumsum(np.asarray(spline.heights), axis=1)[:, :-1] - half
    knots = np.concatenate([knots, half, -half], axis=1)

    @jax.jit
    def at(x):
        def inverse(x):
            z, log_det = jax.vmap(lambda s, x: s.inverse_and_log_det(x))(stack, x[:, None])
            return jnp.sum(z), (z[:, 0], log_det)

        stack = jax.tree.map(lambda leaf: leaf[:, None], spline)
        slope, (z, log_det) = jax.grad(inverse, has_aux=True)(x)
        by_raw = jax.grad(lambda raw: jnp.sum(transformer(raw).inverse_and_log_det(x)[0]))(raw)
        return (
            z,
            log_det,
            slope,
            by_raw,
            jax.vmap(lambda s, z: s.forward_and_log_det(z)[0])(stack, z[:, None])[:, 0],
        )

    for knot in knots.T:
        for x in (knot, np.nextafter(knot, np.float32(9)), np.nextafter(knot, np.float32(-9))):
            z, log_det, slope, by_raw, back = at(jnp.asarray(x))
            assert all(np.all(np.isfinite(leaf)) for leaf in (z, log_det, slope, by_raw))
            assert np.allclose(np.log(slope), log_det, atol=0.1)  # as near a knot as that it jumps
            assert np.allclose(back, x, atol=3e-5)


def test_a_steep_spline_inverts_to_its_last_digits():
    """Between the knots too, where m + root cancels: slopes of 1e3 and bins of a hundredth."""
    spline = jv.bijectors.RationalQuadraticSpline(
        jnp.array([[1.0, 0.01, 0.99]]), jnp.array([[0.01, 1.0, 0.99]]), jnp.array([[1e-3, 1e3]])
    )

    def of(spline, x):
        f = lambda x: spline.inverse_and_log_det(x[None])
        slope, found = jax.jacfwd(lambda x: (f(x)[0][0], f(x)), has_aux=True)(x)
        return *found, slope

    both = jax.jit(jax.vmap(of, (None, 0)))
    xs = np.linspace(-0.985, 0.985, 41, dtype=np.float32)
    found, found_log_det, slope = both(spline, xs)
    with jax.enable_x64(True):
        z, log_det, _ = both(
            jax.tree.map(lambda leaf: np.asarray(leaf, float), spline), xs.astype(float)
        )
    assert np.allclose(found, z, rtol=1e-5, atol=1e-6)
    assert np.allclose(found_log_det, log_det, rtol=1e-4, atol=1e-3)
    assert np.allclose(np.log(slope), found_log_det, atol=1e-3)


FOLDED = {
    "planar": lambda a: jv.bijectors.Planar(-a * jnp.eye(2)[0], jnp.eye(2)[0], 0.0 * a),
    "radial": lambda a: jv.bijectors.Radial(jnp.zeros(2), 0.0 * a, -a),
    "sylvester": lambda a: jv.bijectors.Sylvester(
        jnp.ones((1, 2)), jnp.full((1, 1), a), jnp.full((1, 1), -a), jnp.zeros(1)
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_what_is_nearly_folded_still_inverts(make):
    """Where 1 + w'u, 1 + beta / alpha or 1 + r r~ rounds to 0, in float32: a finite
    log-determinant, with finite slopes, the inverse's with its sign turned."""

    def log_dets(a):
        b, z = make(a), jnp.zeros(2)
        return jnp.stack([b.forward_and_log_det(z)[1], b.inverse_and_log_det(z)[1]])

    both = jax.vmap(lambda a: (log_dets(a), jax.jacobian(log_dets)(a)))
    found, slopes = jax.jit(both)(np.array([10.0, 17.0, 30.0, 300.0], np.float32))
    forward, inverse = np.asarray(found).T
    assert np.all((forward > -40.0) & (forward < -8.0))
    assert np.allclose(forward, -inverse, rtol=0, atol=1e-3)
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize(
    "bijector",
    [
        bijectors.Affine(jnp.zeros(3), 0.0),
        bijectors.Affine(0.0, jnp.zeros(3)),
        bijectors.Radial(jnp.zeros(3), 0.0, 0.0),
    ],
)
def test_a_smaller_event_is_not_broadcast(bijector):
    """One draw in three places would have the density of one."""
    q = jv.Transformed(jv.Normal(jnp.zeros(1), jnp.ones(1)), bijector)
    for call in (lambda: q.sample(jax.random.key(0)), lambda: q.log_prob(jnp.zeros(1))):
        with pytest.raises(ValueError, match=r"has shape \(3,\), expected the event's, \(1,\)"):
            call()
