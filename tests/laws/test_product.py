"""The whole product meets: what is far apart in the library works together, or says why it can't.

Each row is one meeting, held to a closed form, a sum by hand or a Monte Carlo estimate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.evaluation.latent_space import tempered
from jaxvae.models import Ladder, Markov, Multimodal, semi_amortized
from jaxvae.regularizers import LatentSample, free_bits, kl_per_level, regularized
from tests.common import close, standard_errors_off

MEETINGS: dict[str, Callable[[], None]] = {}


def meeting(test: Callable[[], None]) -> Callable[[], None]:
    MEETINGS[test.__name__.removeprefix("_").replace("_", " ")] = test
    return test


@pytest.mark.parametrize("name", MEETINGS)
def test_meeting(name, x64):
    MEETINGS[name]()
