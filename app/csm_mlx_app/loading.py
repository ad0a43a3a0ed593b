"""Loads the checkpoint of `--model`, watched while it is fetched, with the adapter of `--adapter`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import csm_mlx
from csm_mlx_app import console, options, places

if TYPE_CHECKING:
    from csm_mlx import Csm, Moshi, Stt

STT_MISSING = (
    "there is no speech-to-text model in ./weights: get one with 'csm convert kyutai/stt-1b-en_fr-candle "
    "weights/stt-1b-q4 -q' (2.4 GB are fetched), or name one with --model"
)


@contextmanager
def _watched() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is fetched."""
    with console.progress("{task.completed:.0f}/{task.total:.0f} MB  {task.fields[name]}") as show:
        yield lambda name, done, total: show(name=name, completed=done / 1e6, total=total / 1e6)


def load(model: str | None, *, adapter: Path | None = None, speaks: bool = False) -> "Csm":
    """speaks: get ready to speak, and say the checkpoint's notice, which is about its voice."""
    source = options.resolve_model(model) if adapter is None else base_of(adapter, model)
    with _watched() as on_progress:
        csm = csm_mlx.load(source, adapter=adapter, on_progress=on_progress, on_note=console.note)
    if speaks:
        _make_ready(csm)
    return csm


def _make_ready(loaded: "Csm | Stt | Moshi") -> None:
    """To compute, and says the notice, which is about its voice."""
    from csm_mlx.checkpoint.load import give_back_memory

    loaded.model.prepare()
    give_back_memory()
    if loaded.config.notice:
        console.note(loaded.config.notice)


def load_stt(model: str | None) -> "Stt":
    """What `--model` of csm transcribe means; without it, the first of ./weights that writes what it hears."""
    name = model or next(iter(places.stt_names()), None)
    if name is None:
        raise csm_mlx.errors.CheckpointError(STT_MISSING)
    source = options.resolve_model(name)
    with _watched() as on_progress:
        stt = csm_mlx.load_stt(source, on_progress=on_progress, on_note=console.note)
    _make_ready(stt)
    return stt


def base_of(adapter: Path, model: str | None) -> str:
    """What `--model` means beside an adapter: without it, what the adapter says that it was trained on."""
    if model:
        return options.resolve_model(model)
    from csm_mlx.checkpoint.adapter import read_adapter

    name = read_adapter(adapter).base.name
    if name == csm_mlx.default_checkpoint().name:
        return options.resolve_model(None)
    source = options.resolve_model(name)
    if "/" not in name and not Path(source).exists():
        raise csm_mlx.errors.CheckpointError(
            f"{adapter} was trained on {name}, which is neither here nor in ./weights; name its folder with --model"
        )
    return source


def load_duplex(model: str) -> "Moshi":
    """What `--model` of csm duplex means."""
    source = options.resolve_model(model)
    with _watched() as on_progress:
        moshi = csm_mlx.load_moshi(source, on_progress=on_progress, on_note=console.note)
    _make_ready(moshi)
    return moshi
