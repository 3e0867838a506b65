"""PyTorch: eager with a DataLoader, and as fast as we could make it."""

import math
from collections.abc import Callable
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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES = {"compiled": "default", "graphs": "reduce-overhead", "one graph": "default"}


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
            size = math.prod(w.shape)
            self.encoder = nn.Sequential(nn.Flatten(), *dense([size, *w.hidden, 2 * w.latent]))
            self.decoder = nn.Sequential(*dense([w.latent, *w.hidden[::-1], size]))
        self.sigma = w.sigma
        initialise(self)

    def forward(self, x: torch.Tensor, k: int, beta: Any = 1.0) -> torch.Tensor:
        mean, log_var = self.encoder(x).float().chunk(2, dim=-1)
        scale, flat = torch.exp(0.5 * log_var), x.flatten(1)
        if k == 1:
            raw = self.decoder(mean + scale * torch.randn_like(mean)).float()
            if self.sigma is None:
                distortion = F.binary_cross_entropy_with_logits(raw, flat, reduction="sum")
            else:
                constant = math.log(self.sigma) + 0.5 * math.log(2.0 * math.pi)
                distortion = torch.sum(0.5 * ((flat - raw) / self.sigma) ** 2 + constant)
            rate = 0.5 * torch.sum(mean**2 + scale**2 - 1.0 - log_var)
            return (distortion + beta * rate) / len(x)
        eps = torch.randn(k, *mean.shape, device=mean.device)
        z = mean + scale * eps
        logits = self.decoder(z).float()
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
    data = on_device(images)
    channels_last = variant != "eager" and w.network != "mlp"
    if channels_last:
        data = data.contiguous(memory_format=torch.channels_last)

    def start(beta: float) -> Callable[[torch.Tensor], torch.Tensor]:
        model: Any = TopDown(w) if w.network == "top-down" else VAE(w)
        model = model.to(DEVICE)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        how = {"capturable": True} if variant == "one graph" else {}
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=variant != "eager", **how)
        if variant in MODES:
            model = torch.compile(model, mode=MODES[variant])

        def step(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=w.dtype == "bfloat16"):
                loss = model(x, w.num_samples, beta)
            loss.backward()
            optimizer.step()
            return loss

        return captured(step, data[: w.batch]) if variant == "one graph" else step

    def batches() -> Any:
        if variant == "eager":
            yield from (x for (x,) in DataLoader(TensorDataset(data), w.batch, shuffle=True))
        else:
            for rows in torch.randperm(len(data), device=DEVICE).split(w.batch):
                yield data[rows]

    step = start(w.betas[0])
    for _ in range(w.looks):
        losses = []
        for i in range(w.runs):
            if w.runs > 1:
                step = start(w.betas[i % len(w.betas)])
            loss, made = torch.tensor(np.nan), 0
            while made < w.chunk:
                for _, x in zip(range(w.chunk - made), batches(), strict=False):
                    if len(x) == w.batch:
                        loss, made = step(x), made + 1
            losses.append(loss.item())
        look(np.mean(losses))


def on_device(images: np.ndarray) -> torch.Tensor:
    """The images as PyTorch wants them, on a device that is set up as for JAX: TF32 products."""
    torch.compiler.reset()
    if DEVICE == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(DEVICE)


def captured(
    step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A whole step, its optimiser too, recorded as one CUDA graph."""
    if DEVICE != "cuda":
        raise NotImplementedError("a CUDA graph needs a CUDA device")
    held, stream = x.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(held)

    def replay(x: torch.Tensor) -> torch.Tensor:
        held.copy_(x)
        graph.replay()
        return loss

    return replay


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
graphs = partial(train, variant="graphs")
one_graph = partial(train, variant="one graph")
