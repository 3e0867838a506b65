"""jaxvae: variational autoencoders as pure functions."""

__version__ = "0.2.0"

import importlib as _importlib
import typing as _typing

from jaxvae import bijectors as bijectors
from jaxvae import bounds as bounds
from jaxvae import distributions as distributions
from jaxvae import evaluation as evaluation
from jaxvae import gradients as gradients
from jaxvae import models as models
from jaxvae import regularizers as regularizers
from jaxvae import training as training
from jaxvae.batching import batch_mean as batch_mean
from jaxvae.batching import batched as batched
from jaxvae.batching import conditioned as conditioned
from jaxvae.batching import gather as gather
from jaxvae.bounds import Terms as Terms
from jaxvae.bounds import analytic_kl as analytic_kl
from jaxvae.bounds import auto_kl as auto_kl
from jaxvae.bounds import ciwae as ciwae
from jaxvae.bounds import cubo as cubo
from jaxvae.bounds import elbo as elbo
from jaxvae.bounds import eubo as eubo
from jaxvae.bounds import importance_bound as importance_bound
from jaxvae.bounds import iwae as iwae
from jaxvae.bounds import log_weights as log_weights
from jaxvae.bounds import miwae as miwae
from jaxvae.bounds import piwae as piwae
from jaxvae.bounds import renyi as renyi
from jaxvae.bounds import sampled_kl as sampled_kl
from jaxvae.bounds import tvo as tvo
from jaxvae.bounds import vr_max as vr_max
from jaxvae.distributions import Autoregressive as Autoregressive
from jaxvae.distributions import Bernoulli as Bernoulli
from jaxvae.distributions import Beta as Beta
from jaxvae.distributions import Categorical as Categorical
from jaxvae.distributions import ContinuousBernoulli as ContinuousBernoulli
from jaxvae.distributions import Dirichlet as Dirichlet
from jaxvae.distributions import DiscretizedLogistic as DiscretizedLogistic
from jaxvae.distributions import Gamma as Gamma
from jaxvae.distributions import Independent as Independent
from jaxvae.distributions import Joint as Joint
from jaxvae.distributions import Laplace as Laplace
from jaxvae.distributions import LowRankNormal as LowRankNormal
from jaxvae.distributions import Masked as Masked
from jaxvae.distributions import Mixture as Mixture
from jaxvae.distributions import MultivariateNormal as MultivariateNormal
from jaxvae.distributions import NegativeBinomial as NegativeBinomial
from jaxvae.distributions import Normal as Normal
from jaxvae.distributions import OneHotCategorical as OneHotCategorical
from jaxvae.distributions import Poisson as Poisson
from jaxvae.distributions import Product as Product
from jaxvae.distributions import StandardNormal as StandardNormal
from jaxvae.distributions import StudentT as StudentT
from jaxvae.distributions import Transformed as Transformed
from jaxvae.distributions import kl_divergence as kl_divergence
from jaxvae.evaluation import LogMarginal as LogMarginal
from jaxvae.evaluation import log_marginal as log_marginal
from jaxvae.evaluation import use as use
from jaxvae.gradients import doubly_reparameterized as doubly_reparameterized
from jaxvae.gradients import enumeration as enumeration
from jaxvae.gradients import gumbel_softmax as gumbel_softmax
from jaxvae.gradients import hold as hold
from jaxvae.gradients import pathwise as pathwise
from jaxvae.gradients import score_function as score_function
from jaxvae.gradients import sticking_the_landing as sticking_the_landing
from jaxvae.gradients import straight_through as straight_through
from jaxvae.gradients import vimco as vimco
from jaxvae.model import VAE as VAE
from jaxvae.model import Model as Model
from jaxvae.model import VampVAE as VampVAE
from jaxvae.model import generate as generate
from jaxvae.model import reconstruct as reconstruct
from jaxvae.protocols import Distribution as Distribution
from jaxvae.protocols import mean_of as mean_of
from jaxvae.protocols import sample_and_log_prob as sample_and_log_prob
from jaxvae.pytrees import Constant as Constant
from jaxvae.pytrees import pytree as pytree
from jaxvae.pytrees import stacked as stacked
from jaxvae.training import Checkpoints as Checkpoints
from jaxvae.training import TrainState as TrainState
from jaxvae.training import binarize as binarize
from jaxvae.training import fit as fit
from jaxvae.training import init_state as init_state
from jaxvae.training import preprocessed as preprocessed
from jaxvae.training import rescale as rescale
from jaxvae.training import sweep as sweep
from jaxvae.training import train_epoch as train_epoch
from jaxvae.training import train_step as train_step

if _typing.TYPE_CHECKING:
    from jaxvae import nn as nn
    from jaxvae import plots as plots
else:

    def __getattr__(name):
        """`nn` and `plots` where they are first asked for, as they import Flax and matplotlib."""
        if name in ("nn", "plots"):
            return _importlib.import_module(f"jaxvae.{name}")
        raise AttributeError(f"module 'jaxvae' has no attribute {name!r}")
