"""Every flag that more than one command takes, spelled as in mlx-lm, and what it becomes for the library."""

import dataclasses
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_mlx_app import places

if TYPE_CHECKING:
    from csm_mlx.config import SamplingConfig
    from csm_mlx.quantize import Quantization

MODEL, VOICE, SAMPLING, OUTPUT, QUANTIZATION = "Model", "Voice and context", "Sampling", "Output", "Quantization"


def complete_model(incomplete: str) -> list[str]:
    return [name for name in places.checkpoint_names() if name.startswith(incomplete)]


def complete_voice(incomplete: str) -> list[str]:
    return [name for name in places.voice_names() if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        envvar="CSM_MODEL",
        rich_help_panel=MODEL,
        autocompletion=complete_model,
        help="Checkpoint: a folder, a name below ./weights, or a hub id such as unsloth/csm-1b. "
        "Without it, the small embedded voice.",
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=MODEL,
        help="What csm train made of a checkpoint; without --model, of the one that it was trained on.",
    ),
]
AdapterModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        rich_help_panel=MODEL,
        autocompletion=complete_model,
        help="The adapter's base, as for csm say; without it, the one that it was trained on.",
    ),
]
Voice = Annotated[
    str | None,
    typer.Option(
        "--voice",
        "-v",
        metavar="NAME|CLIP.wav",
        rich_help_panel=VOICE,
        autocompletion=complete_voice,
        help="Speak like this: a voice of `csm voices`, or a clip of speech together with --voice-text.",
    ),
]
VoiceText = Annotated[
    str | None, typer.Option(metavar="TEXT", rich_help_panel=VOICE, help="What is said in --voice CLIP.wav.")
]
Speaker = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", rich_help_panel=VOICE, help="Speaker number of the spoken turns; the voice's own, else 0."
    ),
]
Context = Annotated[
    Path | None,
    typer.Option(
        metavar="TURNS.jsonl",
        rich_help_panel=VOICE,
        help='The conversation so far, one turn per line: {"speaker": 1, "text": "Hi!", "audio": "hi.wav"}.',
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**64 - 1, metavar="N", rich_help_panel=SAMPLING, help="Same seed, same sound.")
]
Temp = Annotated[
    float | None,
    typer.Option(
        metavar="T", rich_help_panel=SAMPLING, show_default="the checkpoint's", help="Temperature; 0 is greedy."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K", rich_help_panel=SAMPLING, show_default="the checkpoint's", help="Keep the k likeliest; 0 is off."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P", rich_help_panel=SAMPLING, show_default="the checkpoint's", help="Keep this much mass; 1 is off."
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        rich_help_panel=SAMPLING,
        show_default="the checkpoint's",
        help="Keep what is at least this likely, against the likeliest; 0 is off.",
    ),
]
InputDevice = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|N",
        rich_help_panel=OUTPUT,
        help="Microphone, by part of its name or by its index: see csm devices.",
    ),
]
OutputDevice = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|N",
        rich_help_panel=OUTPUT,
        help="Loudspeaker to play on, by part of its name or by its index: see csm devices.",
    ),
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print numbers as JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace OUT if it is there.")]
Codebooks = Annotated[
    int | None, typer.Option(min=1, metavar="K", help="Use the first K codebooks only; fewer is smaller and coarser.")
]


class QMode(str, Enum):
    affine = "affine"
    mxfp4 = "mxfp4"
    mxfp8 = "mxfp8"
    nvfp4 = "nvfp4"


class QRecipe(str, Enum):
    q4 = "q4"
    q6 = "q6"
    q8 = "q8"
    mixed = "mixed"


class DType(str, Enum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


QBits = Annotated[
    int | None,
    typer.Option("--q-bits", min=1, metavar="2|3|4|5|6|8", rich_help_panel=QUANTIZATION, help="Bits per weight."),
]
QGroupSize = Annotated[
    int | None,
    typer.Option(
        "--q-group-size", min=1, metavar="N", rich_help_panel=QUANTIZATION, help="Weights that share a scale."
    ),
]
QModeOption = Annotated[
    QMode | None, typer.Option("--q-mode", rich_help_panel=QUANTIZATION, help="How a group is coded.")
]
QRecipeOption = Annotated[
    QRecipe | None,
    typer.Option(
        "--q-recipe",
        rich_help_panel=QUANTIZATION,
        help="q4: linears 4 bit, heads and embeddings 8; mixed: first and last layers and down projections at 6.",
    ),
]


def resolve_model(model: str | None) -> str:
    """The folder or hub id that `--model`, `CSM_MODEL` or their absence mean."""
    if not model:
        import csm_mlx

        return str(csm_mlx.default_checkpoint())
    below = places.weights() / model
    return str(below) if not os.path.exists(model) and below.is_dir() else model


def given_sampling(**flags: float | None) -> "dict[str, Any]":
    """The sampling fields that flags set; a value out of range is wrong usage."""
    from csm_mlx.config import SamplingConfig
    from csm_mlx.errors import ConfigError

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        SamplingConfig(**given)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    return given


def sampling(defaults: "SamplingConfig", given: "dict[str, Any]") -> "SamplingConfig":
    return dataclasses.replace(defaults, **given)


def existing_file(path: Path, flag: str) -> Path:
    """Pipes count too: a shell's `<(…)` is one."""
    if path.is_dir() or not path.exists():
        raise typer.BadParameter(f"{path} is {'a folder' if path.is_dir() else 'not there'}", param_hint=flag)
    return path


def sound_target(out: str, flag: str) -> str:
    """Refuses an unknown ending, a missing folder and a terminal, before the work that would fill it."""
    from csm_mlx.audio import AudioWriter

    if out == "-" and sys.stdout.isatty():
        raise typer.BadParameter(
            "stdout is a terminal, which cannot show sound; pipe it, or name a file", param_hint=flag
        )
    AudioWriter(out, 24_000).discard()
    if out != "-":
        _open_folder(Path(out), flag)
    return out


def writable(path: Path, flag: str) -> Path:
    """Refuses a file that cannot be made, before the work that would fill it."""
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder, expected a file", param_hint=flag)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {path.parent} is not there; make it with mkdir -p", param_hint=flag)
    _open_folder(path, flag)
    return path


def _open_folder(path: Path, flag: str) -> None:
    """Results are written beside their place and renamed, so it is the folder that has to let us."""
    folder = path.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"the folder {folder} is read-only; choose another place", param_hint=flag)


def apart(source: Path, target: Path | str, flag: str) -> None:
    """Refuses a result that would replace what it is made of."""
    if str(target) != "-" and Path(target).resolve() == source.resolve():
        raise typer.BadParameter(f"{target} is {source} itself; name another file", param_hint=flag)


def distinct(*places: tuple[str, Path | None]) -> None:
    """Refuses results of one command that would replace each other. places: flags and what they were given."""
    taken: dict[Path, str] = {}
    for flag, path in places:
        if path is not None and (other := taken.setdefault(path.resolve(), flag)) != flag:
            raise typer.BadParameter(f"{path} is what {other} writes; name another file", param_hint=flag)


def results(source: Path | None, *places: tuple[str, Path | None]) -> None:
    """As `writable` for each place that is given, none of which may be the file that is read."""
    for flag, path in places:
        if path is not None:
            writable(path, flag)
            if source is not None:
                apart(source, path, flag)


def png(path: Path, flag: str) -> Path:
    """As `writable`, for a drawing."""
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{path} does not end in .png; plots are drawn as PNG", param_hint=flag)
    return writable(path, flag)


def quantization(
    wanted: bool, recipe: QRecipe | None, bits: int | None, group_size: int | None, mode: QMode | None
) -> "Quantization | None":
    """What the --q flags ask for; a combination that cannot be is wrong usage."""
    if not wanted and bits is group_size is mode is recipe is None:
        return None
    from csm_mlx.errors import QuantizationError
    from csm_mlx.quantize import Quantization

    try:
        return Quantization(
            recipe=recipe.value if recipe else None,
            bits=bits,
            group_size=group_size,
            mode=mode.value if mode else "affine",
        )
    except QuantizationError as error:
        raise typer.BadParameter(str(error), param_hint="--q flags") from None
