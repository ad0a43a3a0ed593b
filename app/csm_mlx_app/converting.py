"""What `csm convert`, `csm quantize` and `csm fuse` share: the writing of a checkpoint, watched, and its account."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_mlx_app import console, options, places

if TYPE_CHECKING:
    from csm_mlx.checkpoint.convert import ConvertReport
    from csm_mlx.quantize import Quantization


_NEXT = {"csm": 'csm say "Hello there."', "stt": "csm transcribe FILE", "moshi": "csm duplex"}
"""What to do with a new checkpoint, by its kind."""


def default_out(source: str, quantization: "Quantization | None") -> Path:
    """./weights/NAME, with the quantization's name behind it: unsloth/csm-1b becomes weights/csm-1b-q4."""
    name = Path(source).expanduser().resolve().name if Path(source).exists() else source.rstrip("/").split("/")[-1]
    suffix = f"-{quantization.name}".replace(", ", "-").replace(" ", "") if quantization else ""
    return places.weights() / f"{name}{suffix}"


def convert(source: str, out: Path, **settings: Any) -> "ConvertReport":
    """Convert, watched; `settings` are those of the library's `convert`."""
    from csm_mlx.checkpoint.convert import convert

    return watch(lambda **shown: convert(options.resolve_model(source), out, **shown, **settings))


def watch(write: "Callable[..., ConvertReport]") -> "ConvertReport":
    """`write(on_tensor=…, on_progress=…)` with a bar per file fetched and tensor written."""
    with console.progress("{task.completed:.0f}/{task.total:.0f} {task.fields[what]}  {task.fields[name]}") as show:

        def on_tensor(name: str, done: int, total: int) -> None:
            show(what="tensors", name=name, completed=done, total=total)

        def on_progress(name: str, done: int, total: int) -> None:
            show(what="MB", name=name, completed=done / 1e6, total=total / 1e6)

        try:
            return write(on_tensor=on_tensor, on_progress=on_progress)
        except KeyboardInterrupt:
            console.talk("interrupted: nothing was written")
            raise


def tell(report: "ConvertReport") -> None:
    """What became of it, for people, on stderr."""
    bits = f"{report.quantization}, {report.bits_per_weight:.2f} bits a weight"
    share = bits if report.quantization else report.dtype
    model, codec, source = map(console.size, (report.model_bytes, report.codec_bytes, report.source_bytes))
    console.talk(
        f"{report.layout} layout -> {report.out}: {model} ({share}), codec {codec}, from {source}, "
        f"in {report.seconds:.1f} s with at most {console.size(report.peak_memory_bytes)} of memory"
    )
    if report.voices:
        console.talk(f"voices: {', '.join(report.voices)}; csm say --voice NAME speaks with one")
    for line in report.notes:
        console.note(line)
    console.talk(f"next: {_NEXT[report.kind]} --model {shlex.quote(str(report.out))}")
