"""Training as a fold: a state, a step, an epoch, and `fit`, which runs many and keeps them safe.

All of it is plain optax and `jax.lax.scan`; an objective is all that it knows of a model.
"""

from jaxvae.training import workarounds as workarounds
from jaxvae.training.averaging import ParameterAverage as ParameterAverage
from jaxvae.training.averaging import average_parameters as average_parameters
from jaxvae.training.averaging import averaged_model as averaged_model
from jaxvae.training.checkpoints import CheckpointError as CheckpointError
from jaxvae.training.checkpoints import Checkpoints as Checkpoints
from jaxvae.training.checkpoints import CorruptCheckpointError as CorruptCheckpointError
from jaxvae.training.checkpoints import Stored as Stored
from jaxvae.training.checkpoints import best_checkpoint as best_checkpoint
from jaxvae.training.checkpoints import checkpoint_files as checkpoint_files
from jaxvae.training.checkpoints import load_checkpoint as load_checkpoint
from jaxvae.training.checkpoints import newest_checkpoint as newest_checkpoint
from jaxvae.training.checkpoints import read_checkpoint as read_checkpoint
from jaxvae.training.checkpoints import save_checkpoint as save_checkpoint
from jaxvae.training.devices import shard_rows as shard_rows
from jaxvae.training.fitting import fit as fit
from jaxvae.training.nonfinite import NonFiniteError as NonFiniteError
from jaxvae.training.nonfinite import all_finite as all_finite
from jaxvae.training.nonfinite import clip_by_finite_norm as clip_by_finite_norm
from jaxvae.training.nonfinite import skip_nonfinite as skip_nonfinite
from jaxvae.training.preprocessing import binarize as binarize
from jaxvae.training.preprocessing import preprocessed as preprocessed
from jaxvae.training.preprocessing import rescale as rescale
from jaxvae.training.preprocessing import threshold as threshold
from jaxvae.training.schedules import cyclical as cyclical
from jaxvae.training.schedules import sigmoid_annealing as sigmoid_annealing
from jaxvae.training.schedules import warn_if_unfinished as warn_if_unfinished
from jaxvae.training.sparse import SparseRows as SparseRows
from jaxvae.training.sparse import sparse_rows as sparse_rows
from jaxvae.training.steps import Metrics as Metrics
from jaxvae.training.steps import Step as Step
from jaxvae.training.steps import TrainState as TrainState
from jaxvae.training.steps import epoch_order as epoch_order
from jaxvae.training.steps import init_state as init_state
from jaxvae.training.steps import scan_steps as scan_steps
from jaxvae.training.steps import train_epoch as train_epoch
from jaxvae.training.steps import train_step as train_step
from jaxvae.training.sweeps import Sweep as Sweep
from jaxvae.training.sweeps import points_at_once as points_at_once
from jaxvae.training.sweeps import sweep as sweep
