"""Sequences of latents: chains, posteriors that look ahead, padding, a carry, exact smoothing."""

from jaxvae.models.state_space.carry import RSSM as RSSM
from jaxvae.models.state_space.carry import Carried as Carried
from jaxvae.models.state_space.linear import LinearChain as LinearChain
from jaxvae.models.state_space.linear import StructuredVAE as StructuredVAE
from jaxvae.models.state_space.markov import Markov as Markov
from jaxvae.models.state_space.markov import kl_per_step as kl_per_step
from jaxvae.models.state_space.markov import stepwise_kl as stepwise_kl
from jaxvae.models.state_space.padded import Padded as Padded
from jaxvae.models.state_space.smoothing import Smoother as Smoother
from jaxvae.models.state_space.smoothing import emissions as emissions
