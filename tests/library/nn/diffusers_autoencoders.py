"""What diffusers' autoencoders give, for `test_image_networks.py`, which needs no torch:

    cd tests/library/nn
    uv run --no-project --with diffusers==0.42.1 --with torch \\
        python diffusers_autoencoders.py diffusers_autoencoders.safetensors

Random weights that float16 holds; the outputs are computed in float64. torch 2.13, CPU.
"""

import sys
from importlib import import_module
from typing import Any

import numpy as np

KL = {  # stages at 8x12, 4x6 and 2x3
    "block_out_channels": (4, 8, 12),
    "down_block_types": 3 * ("DownEncoderBlock2D",),
    "up_block_types": 3 * ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 2,
}
VQ = {  # stages at 8x12 and 4x6, the second with attention after each block
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "layers_per_block": 2,
    "latent_channels": 3,
    "vq_embed_dim": 2,
    "num_vq_embeddings": 6,
    "norm_num_groups": 2,
}
IMAGE = (1, 3, 8, 12)  # (examples, channels, height, width)


def main(path: str) -> None:
    torch: Any = import_module("torch")
    diffusers: Any = import_module("diffusers")
    torch.manual_seed(0)
    found = {}
    for name, model in {
        "kl": diffusers.AutoencoderKL(**KL),
        "vq": diffusers.VQModel(**VQ),
    }.items():
        model = model.double().eval()
        for key, value in model.state_dict().items():
            around = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            value.copy_((around + 0.3 * torch.randn(value.shape)).half())
            found[f"{name}/state/{key}"] = value.half()
        x = torch.randn(IMAGE).half().double()
        with torch.no_grad():
            if name == "kl":
                encoded = model.encode(x).latent_dist.parameters
                code = torch.randn(1, 2, 2, 3).half().double()
            else:
                encoded = model.encode(x).latents
                code, _, (*_, found["vq/indices"]) = model.quantize(encoded)
            decoded = model.decode(code, **({"force_not_quantize": True} if name == "vq" else {}))
        given = {"x": x, "encoded": encoded, "code": code, "decoded": decoded.sample}
        found |= {f"{name}/{what}": value for what, value in given.items()}
    arrays = {what: np.ascontiguousarray(value.numpy()) for what, value in found.items()}
    import_module("safetensors.numpy").save_file(arrays, path)


if __name__ == "__main__":
    main(sys.argv[1])
