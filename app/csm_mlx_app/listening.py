"""Which speech-to-text checkpoint of Kyutai's hears the user, where it is, and how it shares its codec with CSM."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

import csm_mlx
from csm_mlx.errors import CsmError
from csm_mlx.quantize import named_parameters
from csm_mlx_app import checkpoints, console, options

if TYPE_CHECKING:
    from csm_mlx import Csm, Stt
    from csm_mlx.models.mimi import Mimi
    from csm_mlx_app.assistant.scribe import Scribe

KYUTAI = "kyutai"
"""`--asr` by this name takes whichever is here."""
CONVERT = "csm convert kyutai/stt-1b-en_fr-candle weights/stt-1b-en_fr-q4 -q"
"""Fetches the one that hears pauses too."""


def find_stt(asr: str | None) -> str | None:
    """The checkpoint that `--asr` means, or None where it means whisper. Without it, one that is here.

    `CsmError` where it is asked for and there is none.
    """
    if asr is not None and asr != KYUTAI:
        return _named(asr)
    here = [found for found in checkpoints.find_checkpoints()[0] if found.kind == "stt"]
    if here:
        return str(here[0].path)
    if asr is None:
        return None
    raise CsmError(f"no speech-to-text checkpoint of Kyutai's is in ./weights or the hub's cache; fetch one: {CONVERT}")


def _named(asr: str) -> str | None:
    """A hub id or a folder with such a checkpoint."""
    if asr.startswith(f"{KYUTAI}/"):
        return asr
    folder = Path(options.resolve_model(asr))
    found = checkpoints.describe(folder.name, "here", folder) if folder.is_dir() else None
    return str(folder) if found is not None and found.kind == "stt" else None


def load_stt(source: str) -> "Stt":
    """Watched while it is fetched."""
    with console.progress("{task.completed:.0f}/{task.total:.0f} MB  {task.fields[name]}") as show:

        def on_progress(name: str, done: int, total: int) -> None:
            show(name=name, completed=done / 1e6, total=total / 1e6)

        return csm_mlx.load_stt(source, on_progress=on_progress, on_note=console.note)


def together(csm: "Csm", source: str) -> "tuple[Csm, Scribe]":
    """CSM, and what recognizes for it, with one codec in memory where both have the same; warmed up."""
    from csm_mlx_app.assistant.scribe import Scribe

    stt, n_codebooks = load_stt(source), csm.config.csm.n_codebooks
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
