"""Discrete codes: an encoder's vectors replaced by the nearest of finitely many.

A quantizer is a pytree called on ONE vector z [d], and knows its codes by their index:

    quantizer(z) -> Quantized          Codebook, ResidualCodebooks, FSQ
    quantizer.lookup(index) -> [d]

`jax.vmap` makes it one of a grid. Gradients go straight through: backwards the code is z.
"""

from jaxvae.quantization.codebooks import ema_codebook as ema_codebook
from jaxvae.quantization.codebooks import perplexity as perplexity
from jaxvae.quantization.codebooks import revive as revive
from jaxvae.quantization.quantizers import FSQ as FSQ
from jaxvae.quantization.quantizers import Codebook as Codebook
from jaxvae.quantization.quantizers import Quantized as Quantized
from jaxvae.quantization.quantizers import ResidualCodebooks as ResidualCodebooks
from jaxvae.quantization.quantizers import init_codebook as init_codebook
from jaxvae.quantization.quantizers import straight_to as straight_to
from jaxvae.quantization.vqvae import VQVAE as VQVAE
from jaxvae.quantization.vqvae import PointMass as PointMass
from jaxvae.quantization.vqvae import VQTerms as VQTerms
from jaxvae.quantization.vqvae import ema_step as ema_step
from jaxvae.quantization.vqvae import quantize as quantize
from jaxvae.quantization.vqvae import vq as vq
