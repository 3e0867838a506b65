"""PyTorch: many models at once by `torch.func`, their steps vmapped over stacked parameters."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from experiments.benchmarks.peers.pytorch import DEVICE, VAE, on_device
from experiments.benchmarks.workloads import Workload, plain


def train(w: Workload, images: np.ndarray, look: Any, *, compile: bool = False) -> None:
    plain(w._replace(sigma=None, betas=(1.0,), dtype="float32"), "torch.func", networks=("mlp",))
    data = on_device(images)
    betas = torch.tensor(w.betas, device=DEVICE).repeat(w.seeds)
    skeleton = copy.deepcopy(VAE(w)).to("meta")

    def loss(parameters: Any, x: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return functional_call(skeleton, parameters, (x, w.num_samples, beta))

    gradients: Any = vmap(grad_and_value(loss), randomness="different")
    if compile:
        gradients = torch.compile(gradients)

    def rows() -> torch.Tensor:
        """A shuffle of its own for every model: [steps, models, batch]."""
        steps = len(data) // w.batch
        order = torch.rand(w.runs, len(data), device=DEVICE).argsort(1)[:, : steps * w.batch]
        return order.reshape(w.runs, steps, w.batch).transpose(0, 1)

    for turn in range(w.looks):
        torch.manual_seed(turn)
        parameters, _ = stack_module_state([VAE(w).to(DEVICE) for _ in range(w.runs)])
        optimizer = torch.optim.Adam(list(parameters.values()), 1e-3, fused=True)
        values, made = torch.tensor(np.nan), 0
        while made < w.chunk:
            for _, batch in zip(range(w.chunk - made), rows(), strict=False):
                with torch.autocast(DEVICE, torch.bfloat16, enabled=w.dtype == "bfloat16"):
                    gradient, values = gradients(parameters, data[batch], betas)
                for name, parameter in parameters.items():
                    parameter.grad = gradient[name]
                optimizer.step()
                made += 1
        look(float(values.mean()))


compiled = partial(train, compile=True)
