"""Our own layout: names are attribute paths of the models, arrays as MLX wants them. Nothing to map."""

import re


def is_csm(names: set[str]) -> bool:
    return any(re.match(r"depth_decoder\.layers\.\d|audio_head\.\d", name) for name in names)


def is_mimi(names: set[str]) -> bool:
    return any(re.match(r"quantizer\.(semantic|acoustic)\.codebooks$", name) for name in names)


def is_moshi(names: set[str]) -> bool:
    return "temporal.norm.weight" in names
