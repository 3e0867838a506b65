"""Pytrees: dataclasses as pytrees, constants that never train, and the paths of leaves."""

from jaxvae.pytrees.classes import T as T
from jaxvae.pytrees.classes import pytree as pytree
from jaxvae.pytrees.classes import swappable as swappable
from jaxvae.pytrees.constants import Constant as Constant
from jaxvae.pytrees.constants import constant_checksums as constant_checksums
from jaxvae.pytrees.constants import constant_leaves as constant_leaves
from jaxvae.pytrees.constants import paths as paths
from jaxvae.pytrees.constants import value_of as value_of
from jaxvae.pytrees.constants import with_constant_leaves as with_constant_leaves
from jaxvae.pytrees.leaves import arrays as arrays
from jaxvae.pytrees.leaves import in_a_row as in_a_row
from jaxvae.pytrees.leaves import on_host as on_host
from jaxvae.pytrees.leaves import stacked as stacked
from jaxvae.pytrees.leaves import wide as wide
from jaxvae.pytrees.leaves import with_path as with_path
from jaxvae.pytrees.reprs import layered as layered
from jaxvae.pytrees.reprs import short as short
from jaxvae.pytrees.reprs import shown as shown
