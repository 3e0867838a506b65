"""Discrete codes: an encoder's vectors replaced by the nearest of finitely many.

A quantizer is a pytree called on ONE vector z [d], and knows its codes by their index:

    quantizer(z) -> Quantized(code, indices, commitment, codebook, logits)
    quantizer.lookup(index) -> [d]

`jax.vmap` makes it one of a grid. What the papers propose are answers to five questions, and the
answers multiply:

    which codes there are       Codebook, SimVQ, UnitCodes | implicit: FSQ, LFQ, BSQ
    in which coordinates        as they are, Projected, cosine
    how many a vector has       one, ResidualCodebooks, Grouped, ResidualFSQ
    how a gradient passes       straight through, Rotation, IBQ
    how codes learn             vq's gradient, entropy_penalty, ... | ema_step; start: kmeans
"""

from jaxvae.models.quantization.codebooks import code_counts as code_counts
from jaxvae.models.quantization.codebooks import ema_codebook as ema_codebook
from jaxvae.models.quantization.codebooks import kmeans as kmeans
from jaxvae.models.quantization.codebooks import perplexity as perplexity
from jaxvae.models.quantization.codebooks import reset_dead_codes as reset_dead_codes
from jaxvae.models.quantization.compositions import IBQ as IBQ
from jaxvae.models.quantization.compositions import Projected as Projected
from jaxvae.models.quantization.compositions import Rotation as Rotation
from jaxvae.models.quantization.compositions import cosine as cosine
from jaxvae.models.quantization.compositions import rotation_trick as rotation_trick
from jaxvae.models.quantization.implicit_codes import BSQ as BSQ
from jaxvae.models.quantization.implicit_codes import FSQ as FSQ
from jaxvae.models.quantization.implicit_codes import LFQ as LFQ
from jaxvae.models.quantization.implicit_codes import ResidualFSQ as ResidualFSQ
from jaxvae.models.quantization.indices import Delta as Delta
from jaxvae.models.quantization.indices import MaskedCodes as MaskedCodes
from jaxvae.models.quantization.penalties import entropy_penalty as entropy_penalty
from jaxvae.models.quantization.penalties import orthogonal_penalty as orthogonal_penalty
from jaxvae.models.quantization.quantizers import Codebook as Codebook
from jaxvae.models.quantization.quantizers import Quantized as Quantized
from jaxvae.models.quantization.quantizers import SimVQ as SimVQ
from jaxvae.models.quantization.quantizers import UnitCodes as UnitCodes
from jaxvae.models.quantization.quantizers import init_codebook as init_codebook
from jaxvae.models.quantization.quantizers import nearest as nearest
from jaxvae.models.quantization.quantizers import straight_through_value as straight_through_value
from jaxvae.models.quantization.several import Grouped as Grouped
from jaxvae.models.quantization.several import ResidualCodebooks as ResidualCodebooks
from jaxvae.models.quantization.vqvae import VQVAE as VQVAE
from jaxvae.models.quantization.vqvae import VQTerms as VQTerms
from jaxvae.models.quantization.vqvae import ema_step as ema_step
from jaxvae.models.quantization.vqvae import quantize as quantize
from jaxvae.models.quantization.vqvae import vq as vq
