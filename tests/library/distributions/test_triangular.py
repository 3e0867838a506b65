"""Substitution against SciPy, and that no batch of it is LAPACK's, whose threads can lock up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxvae
from jaxvae.distributions.triangular import solve_lower
from tests.common import close

RNG = np.random.default_rng(0)
L, B = np.eye(5) + np.tril(RNG.normal(size=(3, 5, 5))) / 3, RNG.normal(size=(3, 5, 2))


@pytest.mark.parametrize("vector", [True, False])
def test_solutions_and_gradients_are_scipys(vector, x64):
    """With C = L^-1 b and g = dl/dC: dl/db = L^-T g and dl/dL = -tril(L^-T g C')."""
    b = B[..., 0] if vector else B
    above = L + np.triu(np.full((5, 5), np.nan), 1)  # is not read

    @jax.jit
    def both(lower, b):
        loss = lambda lower, b: jnp.sum(jnp.sin(jax.vmap(solve_lower)(lower, b)))
        return jax.vmap(solve_lower)(lower, b), jax.grad(loss, (0, 1))(lower, b)

    found, (of_lower, of_b) = both(jnp.asarray(above), jnp.asarray(b))
    for i in range(3):
        exact = scipy.linalg.solve_triangular(L[i], b[i], lower=True)
        back = scipy.linalg.solve_triangular(L[i], np.cos(exact), lower=True, trans=1)
        columns = [a.reshape(5, -1) for a in (back, exact)]
        assert close(found[i], exact)
        assert close(of_b[i], back)
        assert close(of_lower[i], -np.tril(columns[0] @ columns[1].T))


def test_no_batch_of_them_is_lapacks():
    def loss(lower, z):
        d = jaxvae.MultivariateNormal(z, lower)
        p = jaxvae.MultivariateNormal(jnp.zeros(5), jnp.eye(5) + lower)
        return p.log_prob(z) + d.log_prob(z) + jaxvae.kl_divergence(d, p)

    arrays = jnp.asarray(L, jnp.float32), jnp.asarray(B[..., 0], jnp.float32)
    program = jax.jit(jax.vmap(jax.grad(loss, (0, 1)))).lower(*arrays).as_text()
    assert "lapack" not in program
    assert "stablehlo.while" in program
