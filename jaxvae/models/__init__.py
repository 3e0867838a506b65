"""Models beyond the plain triple of encoder, decoder and prior.

What can be one is a `Model`, to be used with every bound and estimator; the others bring an
objective of their own.
"""

from jaxvae.models import ppca as ppca
from jaxvae.models.alike import Alike as Alike
from jaxvae.models.alike import DeepTerms as DeepTerms
from jaxvae.models.alike import Descent as Descent
from jaxvae.models.alike import deep_elbo as deep_elbo
from jaxvae.models.diffusion import Diffusion as Diffusion
from jaxvae.models.diffusion import diffusion_kl as diffusion_kl
from jaxvae.models.exemplar import ExemplarVAE as ExemplarVAE
from jaxvae.models.exemplar import left_out as left_out
from jaxvae.models.hamiltonian import HamiltonianVAE as HamiltonianVAE
from jaxvae.models.hamiltonian import Leapfrog as Leapfrog
from jaxvae.models.hierarchical import Block as Block
from jaxvae.models.hierarchical import Ladder as Ladder
from jaxvae.models.hierarchical import TopDown as TopDown
from jaxvae.models.hierarchical import bottom as bottom
from jaxvae.models.hierarchical import gaussian_product as gaussian_product
from jaxvae.models.hierarchical import hierarchy as hierarchy
from jaxvae.models.multimodal import Multimodal as Multimodal
from jaxvae.models.multimodal import mixture_of_experts as mixture_of_experts
from jaxvae.models.multimodal import mixture_of_products as mixture_of_products
from jaxvae.models.multimodal import mvtcae as mvtcae
from jaxvae.models.multimodal import product_of_experts as product_of_experts
from jaxvae.models.not_at_random import MaskedBy as MaskedBy
from jaxvae.models.not_at_random import NotAtRandom as NotAtRandom
from jaxvae.models.private_latents import mixture_with_private as mixture_with_private
from jaxvae.models.private_latents import shared_and_private as shared_and_private
from jaxvae.models.quantization import FSQ as FSQ
from jaxvae.models.quantization import VQVAE as VQVAE
from jaxvae.models.quantization import Codebook as Codebook
from jaxvae.models.quantization import Delta as Delta
from jaxvae.models.quantization import Quantized as Quantized
from jaxvae.models.quantization import ResidualCodebooks as ResidualCodebooks
from jaxvae.models.quantization import VQTerms as VQTerms
from jaxvae.models.quantization import ema_codebook as ema_codebook
from jaxvae.models.quantization import ema_step as ema_step
from jaxvae.models.quantization import init_codebook as init_codebook
from jaxvae.models.quantization import perplexity as perplexity
from jaxvae.models.quantization import reset_dead_codes as reset_dead_codes
from jaxvae.models.quantization import straight_through_value as straight_through_value
from jaxvae.models.quantization import vq as vq
from jaxvae.models.semi_amortization import semi_amortized as semi_amortized
from jaxvae.models.semi_supervised import LabelVAE as LabelVAE
from jaxvae.models.semi_supervised import labelled as labelled
from jaxvae.models.semi_supervised import unlabelled as unlabelled
from jaxvae.models.state_space import RSSM as RSSM
from jaxvae.models.state_space import Carried as Carried
from jaxvae.models.state_space import LinearChain as LinearChain
from jaxvae.models.state_space import Markov as Markov
from jaxvae.models.state_space import Padded as Padded
from jaxvae.models.state_space import Smoother as Smoother
from jaxvae.models.state_space import StructuredVAE as StructuredVAE
from jaxvae.models.state_space import emissions as emissions
from jaxvae.models.state_space import kl_per_step as kl_per_step
from jaxvae.models.state_space import stepwise_kl as stepwise_kl
