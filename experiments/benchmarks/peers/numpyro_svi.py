"""NumPyro: its SVI, the steps between two looks in one `fori_loop`. Dense networks only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO

from experiments.benchmarks.workloads import Workload, plain


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    plain(w, "NumPyro", networks=("mlp",))
    numpyro.enable_validation(False)  # pixels between 0 and 1 are no coins to it
    activation = {"relu": stax.Relu, "tanh": stax.Tanh}[w.activation]
    flat = jnp.asarray(images.reshape(len(images), -1))

    def layers(widths: tuple[int, ...]) -> list[Any]:
        return [layer for width in widths for layer in (stax.Dense(width), activation)]

    heads = stax.parallel(stax.Dense(w.latent), stax.Dense(w.latent))
    encoder = stax.serial(*layers(w.hidden), stax.FanOut(2), heads)
    decoder = stax.serial(*layers(w.hidden[::-1]), stax.Dense(784))

    def model(x: jax.Array) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), w.latent))
        with numpyro.plate("batch", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((w.latent,)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        encode = numpyro.module("encoder", encoder, (len(x), 784))
        mean, log_var = encode(x)
        with numpyro.plate("batch", len(x)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(0.5 * log_var)).to_event(1))

    # alpha = 0 is the IWAE, of each row of the plate
    loss = TraceMeanField_ELBO() if w.num_samples == 1 else RenyiELBO(0.0, w.num_samples)
    svi = SVI(model, guide, numpyro.optim.optax_to_numpyro(optax.adam(1e-3)), loss)

    @jax.jit
    def run(state: Any, order: jax.Array) -> Any:
        def body(i: Any, carry: Any) -> Any:
            return svi.update(carry[0], flat[order[i]])

        return jax.lax.fori_loop(0, w.chunk, body, (state, jnp.float32(0.0)))

    rng = np.random.default_rng(0)

    def start(seed: int) -> Any:
        return svi.init(jax.random.PRNGKey(seed), flat[: w.batch])

    state = start(0)
    for turn in range(w.looks):
        losses = []
        for seed in range(w.seeds):
            if w.seeds > 1:
                state = start(w.seeds * turn + seed)
            order = rng.permutation(len(images))[: w.chunk * w.batch].reshape(w.chunk, w.batch)
            state, loss = run(state, jnp.asarray(order))
            losses.append(float(loss) / w.batch)
        look(np.mean(losses))
