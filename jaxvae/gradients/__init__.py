"""Gradient estimators: how a bound gets its gradient in the parameters of the posterior.

A bound is E[ R(l_1, ..., l_K) ] with l_k = term(q, z_k, log q(z_k)) and z_1, ..., z_K ~ q: the
log-weight of a sample for most bounds, minus distortion minus beta rate for the ELBO, and R a
reduction of the K of them. An estimator is a function

    (reduction, term, q, keys) -> (bound, aux)

with one key a sample. Its value is R; what sets it apart is the gradient it carries. For the
decoder and the prior that is sum_k g_k dl_k/dtheta with g = dR/dl, the same under every estimator
that samples z and for the same key; for the posterior they differ.
"""

from jaxvae.gradients.control import rebar as rebar
from jaxvae.gradients.control import relax as relax
from jaxvae.gradients.discrete import enumeration as enumeration
from jaxvae.gradients.discrete import for_component as for_component
from jaxvae.gradients.mixtures import stratified_mixture as stratified_mixture
from jaxvae.gradients.relaxed import gumbel_rao as gumbel_rao
from jaxvae.gradients.relaxed import gumbel_softmax as gumbel_softmax
from jaxvae.gradients.relaxed import reinmax as reinmax
from jaxvae.gradients.relaxed import straight_through as straight_through
from jaxvae.gradients.reparameterized import Estimator as Estimator
from jaxvae.gradients.reparameterized import Reduction as Reduction
from jaxvae.gradients.reparameterized import Term as Term
from jaxvae.gradients.reparameterized import doubly_reparameterized as doubly_reparameterized
from jaxvae.gradients.reparameterized import hold as hold
from jaxvae.gradients.reparameterized import pathwise as pathwise
from jaxvae.gradients.reparameterized import sticking_the_landing as sticking_the_landing
from jaxvae.gradients.score import learned_baseline as learned_baseline
from jaxvae.gradients.score import leave_one_out as leave_one_out
from jaxvae.gradients.score import no_baseline as no_baseline
from jaxvae.gradients.score import score_function as score_function
from jaxvae.gradients.score import vimco as vimco
from jaxvae.gradients.score import wake as wake
