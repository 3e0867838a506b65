"""The objectives. Each is a function `(model, key, x, *, hyper) -> (bound, aux)` of ONE example.

A bound is to be maximised and is in nats; a loss is its negative. Within one example everything is
summed, over pixels and over latents; over a batch everything is averaged. Always. In the formulas K
is `num_samples` and M is `num_outer`; numbers such as beta are traced, so they anneal and vmap.
"""

from jaxvae.bounds.evidence import Terms as Terms
from jaxvae.bounds.evidence import autoencoder as autoencoder
from jaxvae.bounds.evidence import elbo as elbo
from jaxvae.bounds.importance_weighted import Bound as Bound
from jaxvae.bounds.importance_weighted import importance_bound as importance_bound
from jaxvae.bounds.importance_weighted import iwae as iwae
from jaxvae.bounds.importance_weighted import renyi as renyi
from jaxvae.bounds.importance_weighted import tvo as tvo
from jaxvae.bounds.importance_weighted import vr_max as vr_max
from jaxvae.bounds.importance_weights import log_weights as log_weights
from jaxvae.bounds.kl import KL as KL
from jaxvae.bounds.kl import analytic_kl as analytic_kl
from jaxvae.bounds.kl import auto_kl as auto_kl
from jaxvae.bounds.kl import balanced_kl as balanced_kl
from jaxvae.bounds.kl import keyed_kl as keyed_kl
from jaxvae.bounds.kl import sampled_kl as sampled_kl
from jaxvae.bounds.multiply_weighted import ciwae as ciwae
from jaxvae.bounds.multiply_weighted import miwae as miwae
from jaxvae.bounds.multiply_weighted import piwae as piwae
from jaxvae.bounds.reductions import convex_combination as convex_combination
from jaxvae.bounds.reductions import log_mean_exp as log_mean_exp
from jaxvae.bounds.reductions import log_power_mean as log_power_mean
from jaxvae.bounds.reductions import maximum as maximum
from jaxvae.bounds.reductions import mean_log_mean_exp as mean_log_mean_exp
from jaxvae.bounds.reductions import thermodynamic as thermodynamic
from jaxvae.bounds.upper import cubo as cubo
from jaxvae.bounds.upper import eubo as eubo
from jaxvae.bounds.upper import tvo_upper as tvo_upper
from jaxvae.bounds.wake_sleep import reweighted_wake_sleep as reweighted_wake_sleep
from jaxvae.bounds.wake_sleep import sleep_phase as sleep_phase
