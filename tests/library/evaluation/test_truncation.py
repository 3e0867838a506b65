"""The k likeliest labels, against all of them sorted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxvae import Categorical, Constant, Joint, Normal, OneHotCategorical, Product
from jaxvae.distributions import StraightThrough
from jaxvae.evaluation import tempered, top_k
from jaxvae.models import Carried, Markov
from tests.common import close

LOGITS = np.random.default_rng(0).normal(size=(5, 7))


@pytest.mark.parametrize("k", [1, 3, 7, 9])
@pytest.mark.parametrize("make", [Categorical, OneHotCategorical])
def test_the_k_largest_keep_their_ratios_and_no_other_is_drawn(make, k, x64):
    found = np.exp(top_k(make(jnp.asarray(LOGITS)), k).log_probs)
    for row, logits in zip(found, LOGITS, strict=True):
        largest = np.argsort(-logits)[:k]
        weights = np.exp(logits[largest])
        expected = np.zeros(7)
        expected[largest] = weights / weights.sum()
        assert close(row, expected)


def test_of_equals_so_many_as_are_asked_for():
    d = top_k(Categorical(jnp.array([0.0, 1.0, 0.0, 0.0])), 2)
    assert close(jnp.exp(d.log_probs), [1 / (1 + np.e), np.e / (1 + np.e), 0.0, 0.0])
    assert top_k(Categorical(jnp.zeros(4)), 3).log_prob(jnp.array(3)) == -jnp.inf


def test_a_chain_is_cut_and_tempered_step_by_step(x64):
    """Of choices, which `StraightThrough` and a memory may wrap, as in an RSSM."""
    logits = jnp.asarray(LOGITS)
    first = StraightThrough(OneHotCategorical(logits[0]))
    step = Partial(lambda table, z: StraightThrough(OneHotCategorical(z[:5] @ table)), logits)
    chain = Markov(first, step, 3)
    z = top_k(chain, 1).sample(jax.random.key(0))  # the likeliest at every step
    assert close(top_k(chain, 1).log_prob(z), 0.0)
    cold, sharp = tempered(chain, 0.5), jax.nn.log_softmax(2.0 * logits[0])
    assert close(cold.first.log_prob(z[0]), sharp @ z[0])
    warm = jax.nn.log_softmax(2.0 * z[0, :5] @ logits)
    assert close(cold.step(z[0], None).log_prob(z[1]), warm @ z[1])
    count = Partial(lambda state: Carried(state[0] + 1, step(state[1])))
    counted = top_k(Markov(Carried(jnp.array(1), first), count, 3), 1)
    steps, states = counted.sample(jax.random.key(1))
    assert steps.tolist() == [1, 2, 3]
    assert close(states, z)


@pytest.mark.thorough
def test_what_is_made_of_others_is_cut_in_its_parts(x64):
    """And a temperature comes to the same before and after; k may be traced."""
    first, table = Categorical(jnp.asarray(LOGITS[0])), jnp.asarray(LOGITS)
    both = Joint(first, Partial(lambda table, z: Categorical(table[z % 5]), table))
    z = jnp.argmax(table[0]), jnp.argmax(table[jnp.argmax(table[0]) % 5])
    parts = Product((Constant(first), first))
    for d, event in (both, z), (parts, (z[0], z[0])):
        assert close(top_k(d, 1).log_prob(event), 0.0)
        cut = top_k(tempered(d, 0.7), 3).log_prob(event)
        assert close(tempered(top_k(d, 3), 0.7).log_prob(event), cut)
        assert 0.1 + d.log_prob(event) < cut < -0.01
    kept = jax.vmap(lambda k: jnp.sum(jnp.isfinite(top_k(first, k).logits)))(jnp.arange(1, 8))
    assert kept.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_number_of_labels_is_at_least_1_and_of_choices():
    for bad in (0, -2):
        with pytest.raises(ValueError, match=f"top_k: k is {bad}, expected an integer of at le"):
            top_k(Categorical(jnp.zeros(3)), bad)
    with pytest.raises(TypeError, match="top_k: Normal has no top_k; add `top_k"):
        top_k(Normal(jnp.zeros(2), 1.0), 2)
