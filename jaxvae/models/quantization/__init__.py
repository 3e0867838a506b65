"""Discrete codes: an encoder's vectors replaced by the nearest of finitely many.

A quantizer is a pytree called on ONE vector z [d], and knows its codes by their index:

    quantizer(z) -> Quantized          Codebook, ResidualCodebooks, FSQ
    quantizer.lookup(index) -> [d]

`jax.vmap` makes it one of a grid. Gradients go straight through: backwards the code is z.
"""

from jaxvae.models.quantization.codebooks import ema_codebook as ema_codebook
from jaxvae.models.quantization.codebooks import perplexity as perplexity
from jaxvae.models.quantization.codebooks import reset_dead_codes as reset_dead_codes
from jaxvae.models.quantization.quantizers import FSQ as FSQ
from jaxvae.models.quantization.quantizers import Codebook as Codebook
from jaxvae.models.quantization.quantizers import Quantized as Quantized
from jaxvae.models.quantization.quantizers import ResidualCodebooks as ResidualCodebooks
from jaxvae.models.quantization.quantizers import init_codebook as init_codebook
from jaxvae.models.quantization.quantizers import straight_through_value as straight_through_value
from jaxvae.models.quantization.vqvae import VQVAE as VQVAE
from jaxvae.models.quantization.vqvae import Delta as Delta
from jaxvae.models.quantization.vqvae import VQTerms as VQTerms
from jaxvae.models.quantization.vqvae import ema_step as ema_step
from jaxvae.models.quantization.vqvae import quantize as quantize
from jaxvae.models.quantization.vqvae import vq as vq
