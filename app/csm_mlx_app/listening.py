"""Which speech-to-text checkpoint of Kyutai's hears the user, where it is, and how it shares its codec with CSM."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.groups import read_json
from csm_mlx.errors import CsmError
from csm_mlx.quantize import named_parameters
from csm_mlx_app import checkpoints, loading, options

if TYPE_CHECKING:
    from csm_mlx import Csm
    from csm_mlx.models.mimi import Mimi
    from csm_mlx_app.assistant.scribe import Scribe

KYUTAI = "kyutai"
"""`--asr` by this name takes whichever is here."""
CONVERT = "csm convert kyutai/stt-1b-en_fr-candle weights/stt-1b-en_fr-q4 -q"
"""Fetches the one that hears pauses too."""
SOON_S = 1.0
"""Text that comes later than this after the sound is no default for a conversation: stt-2.6b's comes after 2.5 s."""


def find_stt(asr: str | None) -> str | None:
    """The checkpoint that `--asr` means, or None where it means whisper. Without it, one that is here and whose text
    comes soon.

    `CsmError` where it is asked for and there is none, or a model of another kind.
    """
    if asr is not None and asr != KYUTAI:
        return _named(asr)
    here = [found for found in checkpoints.find_checkpoints()[0] if found.kind == "stt"]
    ranked = sorted((*_merits(found.path), str(found.path)) for found in here)
    if ranked and (asr == KYUTAI or ranked[0][1] <= SOON_S):
        return ranked[0][2]
    if asr is None:
        return None
    raise CsmError(f"no speech-to-text checkpoint of Kyutai's is in ./weights or the hub's cache; fetch one: {CONVERT}")


def _merits(folder: Path) -> tuple[bool, float]:
    """(whether it does not hear pauses, how late its text comes in seconds): the lower, the better to talk with."""
    config = read_json(folder / files.CONFIG)
    if "moshi" in config:
        delay, n_heads = config.get("stt", {}).get("delay_s"), config["moshi"].get("n_extra_heads")
    else:
        delay = (config.get("stt_config") or {}).get("audio_delay_seconds")
        n_heads = config.get("extra_heads_num_heads")
    return not n_heads, SOON_S if delay is None else float(delay)


def _named(asr: str) -> str | None:
    """A hub id or a folder with such a checkpoint; None for what may be whisper's."""
    if asr.startswith(f"{KYUTAI}/"):
        return asr
    folder = Path(options.resolve_model(asr))
    found = checkpoints.describe(folder.name, "here", folder) if folder.is_dir() else None
    if found is not None and found.kind != "stt":
        raise CsmError(f"{folder} holds a model of kind {found.kind}, expected speech-to-text; csm models lists yours")
    return None if found is None else str(folder)


def together(csm: "Csm", source: str) -> "tuple[Csm, Scribe]":
    """CSM, and what recognizes for it, with one codec in memory where both have the same; warmed up."""
    from csm_mlx_app.assistant.scribe import Scribe

    stt, n_codebooks = loading.load_stt(source), csm.config.csm.n_codebooks
    shares = stt.model.config.n_heard >= n_codebooks and _same(csm.codec, stt.codec)
    if shares:
        csm = replace(csm, codec=stt.codec)
    session = stt.session()
    for _ in range(2):
        session.step(np.zeros(stt.frame_size, np.float32))
    return csm, Scribe(stt, n_codebooks=n_codebooks if shares else None)


def _same(a: "Mimi", b: "Mimi") -> bool:
    """Whether two codecs make the same codes."""
    if a.config != b.config:
        return False
    first, second = named_parameters(a), named_parameters(b)
    return all(mx.array_equal(weight, second[name]).item() for name, weight in first.items())
