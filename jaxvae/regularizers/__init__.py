"""What a code is charged: in place of its rate, under a constraint, or by an adversary.

A penalty is a function of one example's code; an objective with one is used as any other.
"""

from jaxvae.regularizers.adversarial import AdversarialPair as AdversarialPair
from jaxvae.regularizers.adversarial import AdversarialTerms as AdversarialTerms
from jaxvae.regularizers.adversarial import adversarial_autoencoder as adversarial_autoencoder
from jaxvae.regularizers.adversarial import discrimination as discrimination
from jaxvae.regularizers.adversarial import factor_vae as factor_vae
from jaxvae.regularizers.adversarial import permute_latents as permute_latents
from jaxvae.regularizers.aggregate_posterior import dip_1_penalty as dip_1_penalty
from jaxvae.regularizers.aggregate_posterior import dip_2_penalty as dip_2_penalty
from jaxvae.regularizers.aggregate_posterior import info_penalty as info_penalty
from jaxvae.regularizers.aggregate_posterior import mmd_penalty as mmd_penalty
from jaxvae.regularizers.aggregate_posterior import sliced_penalty as sliced_penalty
from jaxvae.regularizers.aggregate_posterior import tc_penalty as tc_penalty
from jaxvae.regularizers.delta_vae import ar1 as ar1
from jaxvae.regularizers.delta_vae import delta_vae_rate as delta_vae_rate
from jaxvae.regularizers.image_adversary import Critic as Critic
from jaxvae.regularizers.image_adversary import vae_gan as vae_gan
from jaxvae.regularizers.lagrangian import Constrained as Constrained
from jaxvae.regularizers.lagrangian import ConstrainedTerms as ConstrainedTerms
from jaxvae.regularizers.lagrangian import geco as geco
from jaxvae.regularizers.lagrangian import target_rate as target_rate
from jaxvae.regularizers.patch_adversary import VQGANTerms as VQGANTerms
from jaxvae.regularizers.patch_adversary import hinge_discrimination as hinge_discrimination
from jaxvae.regularizers.patch_adversary import vqgan as vqgan
from jaxvae.regularizers.penalties import LatentSample as LatentSample
from jaxvae.regularizers.penalties import Penalty as Penalty
from jaxvae.regularizers.penalties import capacity as capacity
from jaxvae.regularizers.penalties import free_bits as free_bits
from jaxvae.regularizers.penalties import kl_per_group as kl_per_group
from jaxvae.regularizers.penalties import kl_per_latent as kl_per_latent
from jaxvae.regularizers.penalties import kl_per_level as kl_per_level
from jaxvae.regularizers.penalties import regularized as regularized
from jaxvae.regularizers.perceptual import perceptual_distance as perceptual_distance
from jaxvae.regularizers.regularized_autoencoder import RAETerms as RAETerms
from jaxvae.regularizers.regularized_autoencoder import gradient_penalty as gradient_penalty
from jaxvae.regularizers.regularized_autoencoder import rae as rae
from jaxvae.regularizers.regularized_autoencoder import weight_penalty as weight_penalty
from jaxvae.regularizers.two_samples import Kernel as Kernel
from jaxvae.regularizers.two_samples import inverse_multiquadric as inverse_multiquadric
from jaxvae.regularizers.two_samples import mmd as mmd
from jaxvae.regularizers.two_samples import rbf as rbf
from jaxvae.regularizers.two_samples import sliced_wasserstein as sliced_wasserstein
