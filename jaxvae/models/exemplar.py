"""A model whose prior is made of its training data: exemplars, each left out of its own prior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import gather, lifts, number_of_rows
from jaxvae.checks import Count, Integers, Key, Scalar, check_pair, checked
from jaxvae.distributions import Mixture, Normal
from jaxvae.model import VAE
from jaxvae.protocols import Distribution, mean_of
from jaxvae.pytrees import shown, swappable, value_of
from jaxvae.pytrees.networks import BATCH


@shown
@swappable
class ExemplarVAE(NamedTuple):
    """The Exemplar VAE, whose prior is a mixture about the codes of its data: Norouzi et al. 2020.

    p(z) = 1/N sum_n N(z; mu(x_n), s^2 I), mu(x) the mean of q(z|x)

    Under `batched` the exemplars are encoded once a step, whatever the batch. Train with
    `left_out`, as a row that is its own exemplar would be copied; for any other x, and to draw
    from, it is a model as it stands.

    Args:
      encode: x -> q(z|x), of arrays z.
      decode: z -> p(x|z).
      log_scale: log s, one number that trains.
      exemplars: N rows x_n, in a `Constant`.

    >>> from jaxvae import Constant
    >>> encode = decode = lambda x: Normal(x, jnp.full(2, 0.5))
    >>> model = ExemplarVAE(encode, decode, jnp.log(0.1), Constant(jnp.eye(2)))
    >>> model.prior.mean().tolist(), model.among(jnp.arange(2), 0).prior.mean().tolist()
    ([0.5, 0.5], [0.0, 1.0])
    """

    encode: Callable[[Any], Distribution]
    decode: Callable[[Any], Distribution]
    log_scale: Scalar
    exemplars: Any

    @property
    def prior(self) -> Mixture[Normal]:
        return self.among(jnp.arange(self.number), -1).prior

    @property
    def number(self) -> int:
        """N."""
        return number_of_rows(value_of(self.exemplars), "ExemplarVAE", "exemplars")

    @checked
    def among(self, which: Integers, out: Scalar) -> VAE:
        """The model with these exemplars alone, indices [M], and without number `out`."""
        rows = jax.tree.map(lambda leaf: leaf[which], value_of(self.exemplars))
        means = jax.vmap(lambda x: mean_of(self.encode(x)), axis_name=BATCH)(rows)
        scales = jnp.broadcast_to(jnp.exp(self.log_scale), means.shape)
        logits = jnp.where(which == out, -jnp.inf, jnp.zeros(len(which), means.dtype))
        return VAE(self.encode, self.decode, Mixture(logits, Normal(means, scales)))


@checked
def left_out(
    objective: Callable[..., Any], num_exemplars: Count | None = None
) -> Callable[..., Any]:
    """The objective of an `ExemplarVAE` at (x, n), x being exemplar n, which its prior leaves out.

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || 1/(N-1) sum_{m != n} N(mu(x_m), s^2 I))

    Of many exemplars, some drawn at random serve, by Jensen's inequality: the mean over draws of
    the bound with M of them is below that with all. All examples of a batch are given the same.
    Norouzi et al. 2020.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`.
      num_exemplars: M, at least 2, under `batched`; None takes all.

    >>> from jaxvae import Constant, batched, elbo
    >>> encode = decode = lambda x: Normal(x, jnp.full(2, 0.5))
    >>> rows = jnp.eye(2)
    >>> model = ExemplarVAE(encode, decode, jnp.log(0.5), Constant(rows))
    >>> objective = batched(left_out(elbo))
    >>> bound, terms = objective(model, jax.random.key(0), (rows, jnp.arange(2)))
    >>> terms.rate.shape
    (2,)
    """
    if num_exemplars == 1:
        raise ValueError("left_out: num_exemplars is 1, expected 2, as one may be left out")

    @lifts(objective)
    def of_others(model: ExemplarVAE, key: Key, pair: tuple[Any, Array], **hyper: Any) -> Any:
        check_pair("left_out", "data", pair, "(x, index)")
        x, index = pair
        which = jnp.arange(model.number)
        if num_exemplars is not None:
            if num_exemplars > model.number:
                raise ValueError(
                    f"left_out: num_exemplars is {num_exemplars}, expected at most "
                    f"{model.number}, the exemplars that there are"
                )
            key, own = jax.random.split(key)
            shared = gather(jax.random.key_data(own))[0]
            shared = jax.random.wrap_key_data(shared, impl=jax.random.key_impl(own))
            which = jax.random.choice(shared, which, (num_exemplars,), replace=False)
        return objective(model.among(which, index), key, x, **hyper)

    return of_others
