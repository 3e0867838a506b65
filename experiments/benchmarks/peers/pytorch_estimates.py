"""PyTorch: log p(x) by importance sampling and by AIS, the same estimates as ours."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks.workloads import LEAPFROG, PILOTS, TEMPERATURES, Workload


def log_p(w: Workload, model: Any, xs: torch.Tensor) -> torch.Tensor:
    """Of every image, eight at a time."""
    one = ais if w.job == "ais" else importance_sampling
    return torch.cat([one(model, x, w.num_samples) for x in xs.split(8)])


def log_likelihood(model: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log p(x|z): x [b, n], z [b, k, d] -> [b, k]."""
    logits = model.decoder(z)
    target = x[:, None].expand_as(logits)
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


@torch.no_grad()
def importance_sampling(model: Any, x: torch.Tensor, num_samples: int) -> torch.Tensor:
    mean, log_var = model.encoder(x)[:, None].chunk(2, dim=-1)
    log_w = []
    for k in torch.arange(num_samples).split(250):  # what is held at once
        eps = torch.randn(len(x), len(k), mean.shape[-1])
        z = mean + torch.exp(0.5 * log_var) * eps
        log_ratio = torch.sum(0.5 * (eps**2 - z**2 + log_var), dim=-1)
        log_w.append(log_likelihood(model, x, z) + log_ratio)
    return torch.logsumexp(torch.cat(log_w, dim=1), dim=1) - np.log(num_samples)


def ais(model: Any, x: torch.Tensor, num_chains: int) -> torch.Tensor:
    """From the prior by Hamiltonian transitions, whose step the pilots adapt."""
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    s = torch.sigmoid(4.0 * torch.linspace(-1.0, 1.0, TEMPERATURES + 1))
    betas = (s - s[0]) / (s[-1] - s[0])

    def likelihood(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log p(x|z) and its gradient: once a leapfrog step, as ours."""
        z = z.detach().requires_grad_()
        value = log_likelihood(model, x, z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def energy(beta: torch.Tensor, z: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        return beta * log_p - 0.5 * torch.sum(z**2, -1)

    z = torch.randn(len(x), PILOTS + num_chains, model.decoder[0].in_features)
    log_p, slope = likelihood(z)
    log_w = betas[1] * log_p
    log_step = torch.full((len(x), 1), np.log(0.3))
    for beta, following in pairwise(betas[1:]):
        step = torch.exp(log_step)[..., None] * (0.5 + 0.5 * torch.rand(*z.shape[:2], 1))
        p = torch.randn_like(z)
        start = energy(beta, z, log_p) - 0.5 * torch.sum(p**2, -1)
        moved, there, uphill = z, log_p, slope
        p = p + 0.5 * step * (beta * uphill - moved)
        for i in range(LEAPFROG):
            moved = moved + step * p
            there, uphill = likelihood(moved)
            p = p + (1.0 if i < LEAPFROG - 1 else 0.5) * step * (beta * uphill - moved)
        log_ratio = energy(beta, moved, there) - 0.5 * torch.sum(p**2, -1) - start
        acceptance = torch.exp(torch.clamp(log_ratio, max=0.0))
        accepted = torch.rand_like(acceptance) < acceptance
        log_p = torch.where(accepted, there, log_p)
        z = torch.where(accepted[..., None], moved, z)
        slope = torch.where(accepted[..., None], uphill, slope)
        log_w = log_w + (following - beta) * log_p
        log_step = log_step + 0.3 * (acceptance[:, :PILOTS].mean(1, keepdim=True) - 0.8)
    return torch.logsumexp(log_w[:, PILOTS:], dim=1) - np.log(num_chains)
