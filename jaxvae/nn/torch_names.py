"""Where the layers of image networks are in the state dicts of a PyTorch library."""

import re

RULES = {  # of a path within an encoder or a decoder
    r"^first$": "conv_in",
    r"^last$": "conv_out",
    r"^norm\.norm$": "conv_norm_out",
    r"^middle\.": "mid_block.",
    r"cells\[(\d+)\]": r"resnets.\1",
    r"attentions\[(\d+)\]\.norm\.norm": r"attentions.\1.group_norm",
    r"attentions\[(\d+)\]\.(query|key|value)": lambda m: f"attentions.{m[1]}.to_{m[2][0]}",
    r"attentions\[(\d+)\]\.out": r"attentions.\1.to_out.0",
    r"norms\[0\]\.norm": "norm1",
    r"norms\[1\]\.norm": "norm2",
    r"convolutions\[0\]": "conv1",
    r"convolutions\[1\]": "conv2",
    r"shortcut": "conv_shortcut",
}
SIDES = {  # the stages, their ends, and the 1x1 convolution
    "encoder": (r"down_blocks.\1", "downsamplers.0.conv", "quant_conv"),
    "decoder": (r"up_blocks.\1", "upsamplers.0.conv", "post_quant_conv"),
}


def diffusers_name(path: str) -> str:
    """The module of diffusers' AutoencoderKL or VQModel that is a layer of ours: for `from_torch`.

    Args:
      path: of a layer of a `ResidualEncoder` or `ResidualDecoder` in a `VAE` or a `VQVAE`.

    Raises:
      ValueError: the path is in neither.

    >>> diffusers_name("encode.network.stages[0].cells[1].norms[0].norm")
    'encoder.down_blocks.0.resnets.1.norm1'
    >>> diffusers_name("decoder.network.pointwise")
    'post_quant_conv'
    """
    found = re.fullmatch(r"(encode|decode)r?\.(?:network\.)*(.+)", path)
    if found is None:
        raise ValueError(
            f"diffusers_name: path is {path!r}, expected one that begins with encode or decode, as "
            "in a VAE or a VQVAE"
        )
    side, within = f"{found[1]}r", found[2]
    stage, resample, pointwise = SIDES[side]
    if within == "pointwise":
        return pointwise
    ends = {r"stages\[(\d+)\]": stage, r"resample(\.convolution)?": resample}
    for ours, theirs in (RULES | ends).items():
        within = re.sub(ours, theirs, within)
    return f"{side}.{within}"
