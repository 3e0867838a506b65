"""Checkpoints: a pytree in a file whose every byte is verified, and when to write one."""

from jaxvae.training.checkpoints.files import CheckpointError as CheckpointError
from jaxvae.training.checkpoints.files import CorruptCheckpointError as CorruptCheckpointError
from jaxvae.training.checkpoints.files import Stored as Stored
from jaxvae.training.checkpoints.files import read_checkpoint as read_checkpoint
from jaxvae.training.checkpoints.files import save_checkpoint as save_checkpoint
from jaxvae.training.checkpoints.resuming import Checkpoints as Checkpoints
from jaxvae.training.checkpoints.resuming import best_checkpoint as best_checkpoint
from jaxvae.training.checkpoints.resuming import checkpoint_files as checkpoint_files
from jaxvae.training.checkpoints.resuming import load_checkpoint as load_checkpoint
from jaxvae.training.checkpoints.resuming import newest_checkpoint as newest_checkpoint
