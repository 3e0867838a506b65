"""PyTorch: eager with a DataLoader, and as fast as we could make it."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.peers.matmuls import products, turns
from experiments.benchmarks.peers.pytorch_estimates import log_p
from experiments.benchmarks.peers.pytorch_hierarchy import TopDown, initialise
from experiments.benchmarks.workloads import Workload


class VAE(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[w.activation]

        def dense(sizes: list[int]) -> list[nn.Module]:
            layers = [
                layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), activation())
            ]
            return layers[:-1]

        if w.network == "conv":
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), activation(), nn.Conv2d(32, 64, 4, 2, 1), activation(),
                nn.Flatten(), *dense([3136, *w.hidden, 2 * w.latent]),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                *dense([w.latent, *w.hidden[::-1], 3136]), activation(),
                nn.Unflatten(-1, (64, 7, 7)), nn.ConvTranspose2d(64, 32, 4, 2, 1), activation(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Flatten(-3),
            )  # fmt: skip
        else:
            self.encoder = nn.Sequential(nn.Flatten(), *dense([784, *w.hidden, 2 * w.latent]))
            self.decoder = nn.Sequential(*dense([w.latent, *w.hidden[::-1], 784]))
        initialise(self)

    def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        scale, flat = torch.exp(0.5 * log_var), x.flatten(1)
        if k == 1:
            logits = self.decoder(mean + scale * torch.randn_like(mean))
            distortion = F.binary_cross_entropy_with_logits(logits, flat, reduction="sum")
            rate = 0.5 * torch.sum(mean**2 + scale**2 - 1.0 - log_var)
            return (distortion + rate) / len(x)
        eps = torch.randn(k, *mean.shape)
        z = mean + scale * eps
        logits = self.decoder(z)
        log_likelihood = -F.binary_cross_entropy_with_logits(
            logits, flat.expand_as(logits), reduction="none"
        ).sum(-1)
        log_ratio = torch.sum(-0.5 * z**2 + 0.5 * eps**2 + 0.5 * log_var, dim=-1)
        log_w = log_likelihood + log_ratio
        return -(torch.logsumexp(log_w, dim=0) - np.log(k)).mean()


def train(w: Workload, images: np.ndarray, look: Any, variant: str = "best") -> None:
    torch.manual_seed(0)
    if w.job != "train":
        if variant != "best":
            raise NotImplementedError("estimates of log p(x) are timed by the best effort alone")
        return estimate(w, images, look)
    data = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    channels_last = variant != "eager" and w.network != "mlp"
    if channels_last:
        data = data.contiguous(memory_format=torch.channels_last)

    def start() -> tuple[Any, torch.optim.Optimizer]:
        model: Any = TopDown(w) if w.network == "top-down" else VAE(w)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=variant != "eager")
        return torch.compile(model) if variant == "compiled" else model, optimizer

    def batches() -> Any:
        if variant == "eager":
            yield from (x for (x,) in DataLoader(TensorDataset(data), w.batch, shuffle=True))
        else:
            for rows in torch.randperm(len(data)).split(w.batch):
                yield data[rows]

    model, optimizer = start()
    for _ in range(w.looks):
        losses = []
        for _ in range(w.seeds):
            if w.seeds > 1:
                model, optimizer = start()
            loss, feed = torch.tensor(np.nan), batches()
            for _, x in zip(range(w.chunk), feed, strict=False):
                optimizer.zero_grad(set_to_none=True)
                loss = model(x, w.num_samples)
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        look(np.mean(losses))


def estimate(w: Workload, images: np.ndarray, look: Any) -> None:
    """-log p(x), the mean over images."""
    model, xs = VAE(w), torch.from_numpy(images.reshape(len(images), -1))
    for _ in range(w.looks):
        look(-float(log_p(w, model, xs).mean()))


def matmuls(w: Workload, images: np.ndarray, look: Any) -> None:
    """The limit of `matmuls.py` by PyTorch's matrix products."""
    shapes = products(w)
    triples = [(torch.randn(r, n), torch.randn(n, m), torch.empty(r, m)) for r, n, m in shapes]
    for _ in range(w.looks):
        for _ in range(turns(w)):
            for a, b, out in triples:
                torch.matmul(a, b, out=out)
        look(0.0)


eager = partial(train, variant="eager")
compiled = partial(train, variant="compiled")
