"""Reference networks in Flax NNX, used strictly as plain pytrees: all that imports flax is here.

Encoder, decoder and every conditional of a hierarchy are one thing: a network followed by a head.

    network   in_shape -> raw parameters        MLP, ResidualMLP, ConvEncoder, Transformer, ...
    head      raw parameters -> Distribution    NormalHead, BernoulliHead, FlowHead, ...

`deep_hierarchy` makes a whole model instead, of levels that are `ResidualBlock`s.

Networks take ONE example; `jax.vmap` makes a batch. Unless a norm or dropout is asked for, their
only state is `Param`, so `jax.jit`, `jax.grad`, `jax.vmap`, `jax.lax.scan` and optax apply to them
as to any dict of arrays.
"""

from jaxvae.nn.causal_transformer import CausalTransformer as CausalTransformer
from jaxvae.nn.column_kinds import infer_table as infer_table
from jaxvae.nn.conditional import Concatenated as Concatenated
from jaxvae.nn.conditional import Conditional as Conditional
from jaxvae.nn.convolutions import ConvDecoder as ConvDecoder
from jaxvae.nn.convolutions import ConvEncoder as ConvEncoder
from jaxvae.nn.convolutions import Down as Down
from jaxvae.nn.convolutions import Up as Up
from jaxvae.nn.convolutions import halvings as halvings
from jaxvae.nn.deep import DeepHierarchy as DeepHierarchy
from jaxvae.nn.deep import alike as alike
from jaxvae.nn.deep import deep_hierarchy as deep_hierarchy
from jaxvae.nn.denoising import Denoiser as Denoiser
from jaxvae.nn.flows import AutoregressiveFlow as AutoregressiveFlow
from jaxvae.nn.flows import CouplingFlow as CouplingFlow
from jaxvae.nn.flows import FlowHead as FlowHead
from jaxvae.nn.flows import InverseFlow as InverseFlow
from jaxvae.nn.flows import MaskedMLP as MaskedMLP
from jaxvae.nn.heads import BernoulliHead as BernoulliHead
from jaxvae.nn.heads import Head as Head
from jaxvae.nn.heads import HeadOf as HeadOf
from jaxvae.nn.heads import MaskedHead as MaskedHead
from jaxvae.nn.heads import MultivariateNormalHead as MultivariateNormalHead
from jaxvae.nn.heads import NormalHead as NormalHead
from jaxvae.nn.heads import OneHotHead as OneHotHead
from jaxvae.nn.heads import Positive as Positive
from jaxvae.nn.heads import ProductHead as ProductHead
from jaxvae.nn.heads import Real as Real
from jaxvae.nn.heads import Shape as Shape
from jaxvae.nn.heads import positive as positive
from jaxvae.nn.image_networks import NormedCell as NormedCell
from jaxvae.nn.image_networks import PixelAttention as PixelAttention
from jaxvae.nn.image_networks import ResidualDecoder as ResidualDecoder
from jaxvae.nn.image_networks import ResidualEncoder as ResidualEncoder
from jaxvae.nn.linen import linen_network as linen_network
from jaxvae.nn.mixed_precision import InPrecision as InPrecision
from jaxvae.nn.networks import MLP as MLP
from jaxvae.nn.networks import GroupNorm as GroupNorm
from jaxvae.nn.networks import Rescaled as Rescaled
from jaxvae.nn.networks import ResidualMLP as ResidualMLP
from jaxvae.nn.networks import WeightNormed as WeightNormed
from jaxvae.nn.patch_critic import PatchCritic as PatchCritic
from jaxvae.nn.pixel_cnn import GatedConvolution as GatedConvolution
from jaxvae.nn.pixel_cnn import PixelCNN as PixelCNN
from jaxvae.nn.residual import Bottleneck as Bottleneck
from jaxvae.nn.residual import Convolution as Convolution
from jaxvae.nn.residual import ResidualBlock as ResidualBlock
from jaxvae.nn.residual import ResidualCell as ResidualCell
from jaxvae.nn.saved import load_model as load_model
from jaxvae.nn.saved import model_info as model_info
from jaxvae.nn.saved import save_model as save_model
from jaxvae.nn.sequences import Attention as Attention
from jaxvae.nn.sequences import Bidirectional as Bidirectional
from jaxvae.nn.sequences import Recurrent as Recurrent
from jaxvae.nn.sequences import RecurrentGenerator as RecurrentGenerator
from jaxvae.nn.sequences import Transformer as Transformer
from jaxvae.nn.shared_heads import SharedDispersionHead as SharedDispersionHead
from jaxvae.nn.shared_heads import SharedScaleHead as SharedScaleHead
from jaxvae.nn.stock import make_vae as make_vae
from jaxvae.nn.tables import Column as Column
from jaxvae.nn.tables import Table as Table
from jaxvae.nn.tables import TableNetwork as TableNetwork
from jaxvae.nn.torch_names import diffusers_name as diffusers_name
from jaxvae.nn.torch_weights import LogVarianceHead as LogVarianceHead
from jaxvae.nn.torch_weights import from_torch as from_torch
from jaxvae.pytrees.libraries import equinox_network as equinox_network
