"""Models beyond the plain triple of encoder, decoder and prior.

What can be one is a `Model`, to be used with every bound and estimator; the others bring an
objective of their own.
"""

from jaxvae.models import ppca as ppca
from jaxvae.models.alike import Alike as Alike
from jaxvae.models.alike import DeepTerms as DeepTerms
from jaxvae.models.alike import Descent as Descent
from jaxvae.models.alike import deep_elbo as deep_elbo
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
from jaxvae.models.multimodal import product_of_experts as product_of_experts
from jaxvae.models.quantization import BSQ as BSQ
from jaxvae.models.quantization import FSQ as FSQ
from jaxvae.models.quantization import IBQ as IBQ
from jaxvae.models.quantization import LFQ as LFQ
from jaxvae.models.quantization import VQVAE as VQVAE
from jaxvae.models.quantization import Codebook as Codebook
from jaxvae.models.quantization import Delta as Delta
from jaxvae.models.quantization import Grouped as Grouped
from jaxvae.models.quantization import MaskedCodes as MaskedCodes
from jaxvae.models.quantization import Projected as Projected
from jaxvae.models.quantization import Quantized as Quantized
from jaxvae.models.quantization import ResidualCodebooks as ResidualCodebooks
from jaxvae.models.quantization import ResidualFSQ as ResidualFSQ
from jaxvae.models.quantization import Rotation as Rotation
from jaxvae.models.quantization import SimVQ as SimVQ
from jaxvae.models.quantization import UnitCodes as UnitCodes
from jaxvae.models.quantization import VQTerms as VQTerms
from jaxvae.models.quantization import code_counts as code_counts
from jaxvae.models.quantization import cosine as cosine
from jaxvae.models.quantization import ema_codebook as ema_codebook
from jaxvae.models.quantization import ema_step as ema_step
from jaxvae.models.quantization import entropy_penalty as entropy_penalty
from jaxvae.models.quantization import init_codebook as init_codebook
from jaxvae.models.quantization import kmeans as kmeans
from jaxvae.models.quantization import nearest as nearest
from jaxvae.models.quantization import orthogonal_penalty as orthogonal_penalty
from jaxvae.models.quantization import perplexity as perplexity
from jaxvae.models.quantization import reset_dead_codes as reset_dead_codes
from jaxvae.models.quantization import rotation_trick as rotation_trick
from jaxvae.models.quantization import straight_through_value as straight_through_value
from jaxvae.models.quantization import vq as vq
from jaxvae.models.semi_amortization import semi_amortized as semi_amortized
from jaxvae.models.semi_supervised import LabelVAE as LabelVAE
from jaxvae.models.semi_supervised import labelled as labelled
from jaxvae.models.semi_supervised import unlabelled as unlabelled
from jaxvae.models.state_space import Markov as Markov
from jaxvae.models.state_space import Padded as Padded
from jaxvae.models.state_space import Smoother as Smoother
from jaxvae.models.state_space import emissions as emissions
from jaxvae.models.state_space import stepwise_kl as stepwise_kl
