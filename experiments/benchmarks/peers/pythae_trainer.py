"""pythae: its own trainer, models and loss.

Its IWAE reports sum_k w_k log w_k with normalised weights, which is not the bound, so on W2 only
its speed compares.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

from experiments.benchmarks.peers.pytorch import VAE as Networks
from experiments.benchmarks.workloads import Workload, plain


class Encoder(BaseEncoder):
    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mean, log_var = self.network(x).chunk(2, dim=-1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor) -> ModelOutput:
        logits = self.network(z).reshape(-1, 1, 28, 28)
        return ModelOutput(reconstruction=torch.sigmoid(logits))


class Look(TrainingCallback):
    def __init__(self, look: Any):
        self.look = look

    def on_log(self, training_config: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.look(float(logs["train_epoch_loss"]))


class Quiet(BaseTrainer):
    """The trainer without its progress bar."""

    def _setup_callbacks(self) -> None:
        self.callback_handler = CallbackHandler(self.callbacks, self.model)


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    plain(w, "pythae")
    torch.manual_seed(0)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    data = BaseDataset(pixels, torch.zeros(len(pixels)))
    options = {"input_dim": (1, 28, 28), "latent_dim": w.latent, "reconstruction_loss": "bce"}

    def run(epochs: int, look: Any) -> None:
        networks = Networks(w)
        parts = Encoder(networks.encoder), Decoder(networks.decoder)
        if w.num_samples == 1:
            model: Any = VAE(VAEConfig(**options), *parts)
        else:
            model = IWAE(IWAEConfig(number_samples=w.num_samples, **options), *parts)
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=epochs,
                per_device_train_batch_size=w.batch,
                learning_rate=1e-3,
                keep_best_on_train=True,
                no_cuda=True,
            )
            Quiet(model, train_dataset=data, training_config=config, callbacks=[Look(look)]).train()

    if w.seeds == 1:
        run(w.looks, look)
        return
    for _ in range(w.looks):
        losses: list[float] = []
        for _ in range(w.seeds):
            run(1, losses.append)
        look(np.mean(losses))
