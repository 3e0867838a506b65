"""Distributions over ONE event: frozen pytrees with `sample`, `log_prob`, `mean` where it exists.

There is no batch shape and no event shape. A distribution with parameters of shape [d] is one
distribution over one vector; `jax.vmap` over its leaves makes a batch of them. `log_prob` sums over
the whole event and returns a scalar in nats.
"""

from jaxvae.distributions.autoregressive import Autoregressive as Autoregressive
from jaxvae.distributions.continuous_bernoulli import ContinuousBernoulli as ContinuousBernoulli
from jaxvae.distributions.continuous_bernoulli import log_normalizer as log_normalizer
from jaxvae.distributions.counts import NegativeBinomial as NegativeBinomial
from jaxvae.distributions.counts import Poisson as Poisson
from jaxvae.distributions.counts import ZeroInflated as ZeroInflated
from jaxvae.distributions.discrete import Bernoulli as Bernoulli
from jaxvae.distributions.discrete import Categorical as Categorical
from jaxvae.distributions.discrete import OneHotCategorical as OneHotCategorical
from jaxvae.distributions.discrete import unimix as unimix
from jaxvae.distributions.gamma import Beta as Beta
from jaxvae.distributions.gamma import Dirichlet as Dirichlet
from jaxvae.distributions.gamma import Gamma as Gamma
from jaxvae.distributions.independent import Independent as Independent
from jaxvae.distributions.interop import Adapted as Adapted
from jaxvae.distributions.interop import adapt as adapt
from jaxvae.distributions.kl import kl_divergence as kl_divergence
from jaxvae.distributions.kl import kl_standard_normal as kl_standard_normal
from jaxvae.distributions.location_scale import Laplace as Laplace
from jaxvae.distributions.location_scale import StudentT as StudentT
from jaxvae.distributions.logistic import DiscretizedLogistic as DiscretizedLogistic
from jaxvae.distributions.logistic import bits_per_dim as bits_per_dim
from jaxvae.distributions.logistic import logistic_mixture as logistic_mixture
from jaxvae.distributions.masked import Masked as Masked
from jaxvae.distributions.mixture import Mixture as Mixture
from jaxvae.distributions.multivariate_normal import LowRankNormal as LowRankNormal
from jaxvae.distributions.multivariate_normal import MultivariateNormal as MultivariateNormal
from jaxvae.distributions.normal import Normal as Normal
from jaxvae.distributions.normal import StandardNormal as StandardNormal
from jaxvae.distributions.normal import reparameterize as reparameterize
from jaxvae.distributions.optimal_normal import OptimalNormal as OptimalNormal
from jaxvae.distributions.products import Joint as Joint
from jaxvae.distributions.products import Product as Product
from jaxvae.distributions.resampled import Resampled as Resampled
from jaxvae.distributions.spherical import PowerSpherical as PowerSpherical
from jaxvae.distributions.spherical import SphericalUniform as SphericalUniform
from jaxvae.distributions.spherical import VonMisesFisher as VonMisesFisher
from jaxvae.distributions.spherical import log_area as log_area
from jaxvae.distributions.straight_through import StraightThrough as StraightThrough
from jaxvae.distributions.transformed import Transformed as Transformed
