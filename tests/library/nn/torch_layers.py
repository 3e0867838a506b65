"""What PyTorch's layers give, for `test_torch_weights.py`, which needs no torch:

    python tests/library/nn/torch_layers.py > tests/library/nn/torch_layers.json

Weights and inputs are waves, so that no two axes can be taken for one another. torch 2.13, CPU.
"""

import json
from importlib import import_module
from typing import Any


def main() -> None:
    torch: Any = import_module("torch")
    nn, utils = torch.nn, torch.nn.utils
    image, rows = (2, 3, 4), (4, 6)  # (channels, height, width); (examples, features)
    normed = utils.parametrizations.weight_norm
    layers = {
        "linear, norms": (
            nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GroupNorm(2, 8)),
            rows,
        ),
        "no affine": (nn.Sequential(nn.LayerNorm(6, elementwise_affine=False)), rows),
        "embedding": (nn.Sequential(nn.Embedding(5, 3)), None),
        "conv": (nn.Sequential(nn.Conv2d(2, 3, (3, 2), stride=2, padding=1)), image),
        "conv 1d": (nn.Sequential(nn.Conv1d(2, 3, 3)), (2, 5)),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1)), image),
        "transposed, same": (nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 2, 1)), image),
        "transposed, not square": (nn.Sequential(nn.ConvTranspose2d(2, 3, (2, 3))), image),
        "transposed 1d": (nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=3)), (2, 5)),
        "weight norm": (nn.Sequential(normed(nn.Linear(6, 4))), rows),
        "weight norm, old": (nn.Sequential(utils.weight_norm(nn.Linear(6, 4))), rows),
        "weight norm, one length": (nn.Sequential(normed(nn.Linear(6, 4), dim=None)), rows),
        "weight norm, of inputs": (nn.Sequential(normed(nn.Linear(6, 4), dim=1)), rows),
        "weight norm, conv": (nn.Sequential(normed(nn.Conv2d(2, 3, 3))), (2, 4, 5)),
        "weight norm, transposed": (nn.Sequential(normed(nn.ConvTranspose2d(2, 3, 3))), image),
        "gru": (nn.ModuleDict({"rnn": nn.GRU(3, 2, num_layers=2, bidirectional=True)}), (5, 3)),
        "gru, no bias": (nn.ModuleDict({"rnn": nn.GRU(3, 2, bias=False)}), (5, 3)),
        "gru cell": (nn.ModuleDict({"rnn": nn.GRUCell(3, 2)}), (3,)),
    }
    print(json.dumps({name: given(torch, *layer) for name, layer in layers.items()}))


def given(torch: Any, module: Any, shape: tuple[int, ...] | None) -> dict[str, Any]:
    """The state dict, x and module(x), an example with no axis of a batch but for the norms."""
    for number, weight in enumerate(module.parameters()):
        weight.data = waves(torch, weight.shape, number + 1.0)
    x = torch.tensor([3, 0, 4]) if shape is None else waves(torch, shape, 0.5)
    y = module["rnn"](x) if "rnn" in dict(module.named_children()) else module(x)
    state = {name: round_(value) for name, value in module.state_dict().items()}
    return {"state": state, "x": round_(x), "y": round_(y[0] if isinstance(y, tuple) else y)}


def waves(torch: Any, shape: Any, phase: float) -> Any:
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = torch.round(torch.sin(phase + 1.7 * number) * 1e4) / 1e4
    return values.float().reshape(shape)


def round_(value: Any) -> Any:
    """As lists: short decimals, and whole numbers as they are."""
    return (
        (value.detach().double() if value.is_floating_point() else value).numpy().round(6).tolist()
    )


if __name__ == "__main__":
    main()
