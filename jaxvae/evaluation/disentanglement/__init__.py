"""Does a latent hold one factor of the data, and a factor one latent? Scores of arrays, by NumPy.

Codes are [n, d], posterior means of n examples as a rule; factors are the integers [n, k] that the
examples were made of. Every score is 1 for a latent a factor. Noise gets about 0, unless a score
says otherwise.
"""

from jaxvae.evaluation.disentanglement.fixed_factors import beta_vae_score as beta_vae_score
from jaxvae.evaluation.disentanglement.fixed_factors import factor_vae_score as factor_vae_score
from jaxvae.evaluation.disentanglement.information import mig as mig
from jaxvae.evaluation.disentanglement.information import modularity as modularity
from jaxvae.evaluation.disentanglement.information import mutual_information as mutual_information
from jaxvae.evaluation.disentanglement.prediction import DCI as DCI
from jaxvae.evaluation.disentanglement.prediction import dci as dci
from jaxvae.evaluation.disentanglement.prediction import sap as sap
