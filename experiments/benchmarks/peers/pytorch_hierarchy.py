"""PyTorch: the top-down hierarchy of W5, and the initial weights of all its networks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.workloads import Workload


def initialise(module: nn.Module) -> None:
    """Weights of variance 1 / fan-in and biases of 0, as everyone's."""
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):  # of stride 2: an output hears 2x2 inputs
            nn.init.normal_(layer.weight, std=(4 * layer.in_channels) ** -0.5)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.zeros_(layer.bias)


class Level(nn.Module):
    def __init__(self, width: int, latent: int):
        super().__init__()

        def mlp(n: int, m: int) -> nn.Module:
            return nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Linear(width, m))

        self.prior, self.posterior = mlp(width, 2 * latent), mlp(2 * width, 2 * latent)
        self.merge = mlp(width + latent, width)

    def forward(self, h: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p_mean, p_log_var = self.prior(h).float().chunk(2, dim=-1)
        q_mean, q_log_var = self.posterior(torch.cat([h, features], -1)).float().chunk(2, dim=-1)
        z = q_mean + torch.exp(0.5 * q_log_var) * torch.randn_like(q_mean)
        ratio = torch.exp(q_log_var - p_log_var) + (q_mean - p_mean) ** 2 * torch.exp(-p_log_var)
        rate = 0.5 * torch.sum(ratio - 1.0 + p_log_var - q_log_var)
        return h + self.merge(torch.cat([h, z], -1)), rate


class TopDown(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        (height, side, channels), (width,) = w.shape, w.hidden
        small = height // 4, side // 4
        flat = 64 * small[0] * small[1]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(flat, width), nn.ReLU(), nn.Linear(width, width),
        )  # fmt: skip
        self.levels = nn.ModuleList([Level(width, w.latent) for _ in range(w.levels)])
        self.decoder = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, flat), nn.ReLU(),
            nn.Unflatten(-1, (64, *small)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 4, 2, 1),
        )  # fmt: skip
        self.start = nn.Parameter(torch.zeros(width))
        initialise(self)

    def forward(self, x: torch.Tensor, k: int, beta: Any = 1.0) -> torch.Tensor:
        del k
        features, rates = self.encoder(x), []
        h: Any = self.start.expand(len(x), -1)
        for level in self.levels:
            h, rate = level(h, features)
            rates.append(rate)
        logits = self.decoder(h).float()
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (distortion + beta * torch.stack(rates).sum()) / len(x)
