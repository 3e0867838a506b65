"""Linear-Gaussian chains, which Gaussian evidence leaves linear-Gaussian: exact smoothing."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxvae.checks import Count, Key, Leaf, Tree, a_class_of, check_shape, checked
from jaxvae.distributions import Independent, MultivariateNormal, Normal
from jaxvae.distributions.kl import kl_divergence
from jaxvae.distributions.triangular import solve_lower
from jaxvae.evaluation.latent_space import Index
from jaxvae.model import Conditional
from jaxvae.models.hierarchical import times
from jaxvae.models.state_space.markov import Markov
from jaxvae.protocols import Distribution, distribution
from jaxvae.pytrees import shown, swappable, value_of
from jaxvae.pytrees.scanning import scan


@distribution
@dataclass(frozen=True, eq=False)
class LinearChain:
    """p(z_1) = N(m, P P'), p(z_t | z_{t-1}) = N(A z_{t-1} + b, L L'): linear-Gaussian dynamics.

    Its product with Gaussian evidence, p(z) prod_t N(z_t; m_t, S_t), is another one, `times`, so
    that the smoothed posterior is drawn, scored and charged exactly: Kalman's smoother in
    information form, from the last step to the first. Kalman 1960; Rauch, Tung & Striebel 1965.

    Args:
      first: p(z_1), a `MultivariateNormal` over [d].
      gain: A, [d, d], or of every step from the second on, [T - 1, d, d]; so are the next two.
      shift: b, [d].
      scale_tril: L, [d, d], lower triangular; signs on its diagonal don't matter.
      length: T, a Python integer; events have shape [T, d].

    >>> one = jnp.eye(1)
    >>> walk = LinearChain(MultivariateNormal(jnp.zeros(1), one), one, jnp.zeros(1), one, 2)
    >>> seen = walk.times(Normal(jnp.array([[0.0], [4.0]]), jnp.array([[jnp.inf], [1.0]])))
    >>> [round(float(z), 4) for z in seen.mean()[:, 0]]  # 4 of variance 1 behind two steps
    [1.3333, 2.6667]
    """

    first: MultivariateNormal
    gain: Leaf
    shift: Leaf
    scale_tril: Leaf
    length: Count = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, *self.first.shape)

    @property
    @checked
    def chain(self) -> Markov[MultivariateNormal]:
        """The same chain, step by step."""
        self._check()
        step = self.gain, self.shift, self.scale_tril
        if jnp.ndim(self.gain) == 2:
            return Markov(self.first, Partial(_affine, step), self.length)
        return Markov(self.first, Partial(_affine_in), self.length, step)

    def sample(self, key: Key) -> Array:
        return self.chain.sample(key)

    def log_prob(self, z: Tree) -> Array:
        return self.chain.log_prob(z)

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        return self.chain.sample_and_log_prob(key)

    def after(self, z: Tree, t: Index, steps: Count) -> Markov:
        return self.chain.after(z, t, steps)

    def mean(self) -> Array:
        return self.marginals()[0]

    def marginals(self) -> tuple[Array, Array]:
        """Mean [T, d] and covariance [T, d, d] of every z_t."""

        def step(before: Any, at: Any) -> Any:
            (mean, cov), (gain, shift, tril) = before, at
            here = gain @ mean + shift, gain @ cov @ gain.T + tril @ tril.T
            return here, here

        start = self.first.mean(), self.first.covariance()
        _, rest = scan(step, start, self._steps())
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)

    def kl_to(self, p: Distribution) -> Array | None:
        """sum_t E_q[KL(q(z_t|z_{t-1}) || p(z_t|z_{t-1}))], of another chain in closed form."""
        p = value_of(p)
        if not isinstance(p, LinearChain):
            return None

        def of_step(mean: Array, cov: Array, q: Any, p: Any) -> Array:
            apart = solve_lower(p[2], q[0] - p[0])  # by what the two are moved apart, in p's noise
            spread = 0.5 * jnp.sum(apart * (apart @ cov))
            return kl_divergence(_affine(q, mean), _affine(p, mean)) + spread

        mean, cov = self.marginals()
        rates = jax.vmap(of_step)(mean[:-1], cov[:-1], self._steps(), p._steps())
        return kl_divergence(self.first, p.first) + jnp.sum(rates)

    def times(self, evidence: Distribution) -> "LinearChain":
        """The chain proportional to p(z) prod_t N(z_t; m_t, S_t), a posterior, as long as z.

        Evidence: a `Normal` over z, [T, d], whose scale is infinite where there is none, or an
        `Independent` of T `MultivariateNormal`s. Of a chain with one step for all, T is that of the
        evidence: what smooths a whole sequence smooths its beginning, too.
        """
        precision, information = _natural(value_of(evidence))
        if jnp.ndim(self.gain) == 2 and len(information) != self.length:
            return replace(self, length=len(information)).times(evidence)
        check_shape("LinearChain.times", "evidence", information, self.shape)

        def step(later: Any, at: Any) -> Any:
            (gain, shift, tril), here = at
            return _update(gain, shift, tril, *jax.tree.map(jnp.add, here, later))

        zeros = jnp.zeros_like(precision[0]), jnp.zeros_like(information[0])
        seen = precision[1:], information[1:]
        later, steps = scan(step, zeros, (self._steps(), seen), reverse=True)
        now = precision[0] + later[0], information[0] + later[1]
        loc, tril = self.first.loc, jnp.tril(self.first.scale_tril)
        _, (_, loc, tril) = _update(jnp.zeros_like(tril), loc, tril, *now)
        gain, shift, scale_tril = steps
        return LinearChain(MultivariateNormal(loc, tril), gain, shift, scale_tril, self.length)

    def _steps(self) -> tuple[Array, Array, Array]:
        """A, b and L of z_2, ..., z_T, each with an axis of T - 1."""
        self._check()
        (d,), n = self.first.shape, self.length - 1
        return (
            jnp.broadcast_to(self.gain, (n, d, d)),
            jnp.broadcast_to(self.shift, (n, d)),
            jnp.broadcast_to(jnp.tril(self.scale_tril), (n, d, d)),
        )

    def _check(self) -> None:
        d = self.first.shape
        each = () if jnp.ndim(self.gain) == 2 else (self.length - 1,)
        for name, shape in ("gain", 2 * d), ("shift", d), ("scale_tril", 2 * d):
            check_shape("LinearChain", name, getattr(self, name), (*each, *shape))


def _affine(step: Any, z: Array) -> MultivariateNormal:
    gain, shift, tril = step
    return MultivariateNormal(gain @ z + shift, tril)


def _affine_in(pair: tuple[Array, Any]) -> MultivariateNormal:
    z, step = pair
    return _affine(step, z)


def _update(gain: Array, shift: Array, tril: Array, precision: Array, information: Array) -> Any:
    """N(z_t; A z + b, L L') exp(-1/2 z_t' J z_t + h' z_t), as a message to z and a step given z.

    In y = L^-1 z_t, of mean a z + b and noise N(0, I), with N = L' J L, n = L' h, V = (I + N)^-1:
    y given z is N(V (a z + b + n), V); of z is left exp(-1/2 z' a' V N a z + z' a' V (n - N b)).
    V N is V N V + V N N V: nothing is subtracted from what it nearly equals.
    """
    a, b = solve_lower(tril, gain), solve_lower(tril, shift)
    n2, n1 = tril.T @ precision @ tril, tril.T @ information
    eye = jnp.eye(len(n1), dtype=n2.dtype)
    upper = jnp.linalg.cholesky((eye + n2)[::-1, ::-1])[::-1, ::-1]  # I + N = U U'
    root = solve_lower(upper.T, eye)  # V = root root', lower triangular
    v = root @ root.T
    vn = v @ n2
    message = a.T @ (v @ n2 @ v + vn @ vn.T) @ a, a.T @ (v @ n1 - vn @ b)
    return message, (tril @ v @ a, tril @ (v @ (b + n1)), tril @ root)


def _natural(evidence: Any) -> tuple[Array, Array]:
    """Precision J_t [T, d, d] and J_t m_t [T, d] of Gaussian evidence."""
    if isinstance(evidence, Normal) and len(evidence.shape) == 2:
        precision = jnp.broadcast_to(jnp.asarray(evidence.scale), evidence.shape) ** -2
        seen = precision > 0  # where there is no evidence its loc may be NaN
        return jax.vmap(jnp.diag)(precision), precision * jnp.where(seen, evidence.loc, 0.0)
    if isinstance(evidence, Independent) and isinstance(evidence.parts, MultivariateNormal):
        return jax.vmap(_natural_of_one)(evidence.parts)
    raise TypeError(
        f"LinearChain.times: evidence is {a_class_of(evidence)}, expected a Normal over [T, d] or "
        "an Independent of MultivariateNormals"
    )


def _natural_of_one(d: MultivariateNormal) -> tuple[Array, Array]:
    inverse = solve_lower(d.scale_tril, jnp.eye(len(d.loc), dtype=d.loc.dtype))
    return inverse.T @ inverse, inverse.T @ (inverse @ d.loc)


@shown
@swappable
class StructuredVAE(NamedTuple):
    """The structured VAE (SVAE): q(z|x) ~ p(z) e(z; x), the prior times what a network makes of x.

    With a `LinearChain` for a prior q is exact given the evidence, and smooths over all steps, by
    the dynamics that are learned. With a linear-Gaussian p(x|z) it is exact altogether, and the
    ELBO is log p(x). Johnson et al. 2016, here with e for its conjugate potentials.

    Args:
      evidence: x -> e, a distribution that `prior.times` takes: a `Normal` over z.
      decode: z -> p(x|z).
      prior: p(z), with `times(evidence)`, or a `Normal`.

    >>> from jaxvae import elbo, sampled_kl
    >>> one = jnp.eye(1)
    >>> walk = LinearChain(MultivariateNormal(jnp.zeros(1), one), one, jnp.zeros(1), one, 5)
    >>> of = Partial(lambda v: Normal(v, jnp.ones_like(v)))
    >>> model = StructuredVAE(of, of, walk)
    >>> draw = lambda seed: elbo(model, jax.random.key(seed), jnp.ones((5, 1)), kl=sampled_kl)[0]
    >>> bool(jnp.isclose(draw(0), draw(1)))  # both are log p(x), whatever was drawn
    True
    """

    evidence: Conditional[Any]
    decode: Conditional[Any]
    prior: Any

    def encode(self, x: Tree) -> Any:
        return times(self.prior, self.evidence(x))
