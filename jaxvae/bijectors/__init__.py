"""Bijectors: invertible maps that know their Jacobian's determinant; each is a pytree.

    forward_and_log_det(z) -> (x, log |det dx/dz|)
    inverse_and_log_det(x) -> (z, log |det dz/dx|)

`Transformed(base, bijector)` pushes a distribution forward. Whichever direction is in one pass is
the one to train in: the forward one for a posterior, which is sampled, and the inverse one for a
prior, which is scored. `Inverse` swaps the two.
"""

from jaxvae.bijectors.composition import Chain as Chain
from jaxvae.bijectors.composition import Inverse as Inverse
from jaxvae.bijectors.composition import Reverse as Reverse
from jaxvae.bijectors.conditioned import Coupling as Coupling
from jaxvae.bijectors.conditioned import InverseAutoregressive as InverseAutoregressive
from jaxvae.bijectors.elementwise import Affine as Affine
from jaxvae.bijectors.elementwise import AffineTransformer as AffineTransformer
from jaxvae.bijectors.elementwise import RationalQuadraticSpline as RationalQuadraticSpline
from jaxvae.bijectors.elementwise import SplineTransformer as SplineTransformer
from jaxvae.bijectors.planar import Householder as Householder
from jaxvae.bijectors.planar import Planar as Planar
from jaxvae.bijectors.planar import Radial as Radial
from jaxvae.bijectors.planar import Sylvester as Sylvester
