"""`csm codec`: a checkpoint's codec by itself, sound to codes and back, and how much of the sound survives."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_mlx_app import console, options

if TYPE_CHECKING:
    import numpy as np

    from csm_mlx.models.mimi import Mimi

app = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")

Stream = Annotated[
    bool, typer.Option("--stream", help="Work frame by frame, as in a live stream; the result is equal.")
]


@app.callback(invoke_without_command=True)
def codec(context: typer.Context) -> None:
    """Sound to codes and back, with the codec of a checkpoint."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def encode(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A sound file: wav, flac, mp3, ogg, …")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The codes, as safetensors; an older file is replaced.")
    ],
    codebooks: options.Codebooks = None,
    stream: Stream = False,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Turn sound into codes: safetensors, tensor `codes`, int32 (frames, codebooks).

    [bold]Examples[/bold]
      csm codec encode hello.wav hello.safetensors
      csm codec encode hello.wav coarse.safetensors --codebooks 2 --model csm-1b-q4
    """
    import mlx.core as mx
    import numpy as np

    from csm_mlx.audio import pad_to_frames, read_audio
    from csm_mlx_app.codes import write_codes

    options.existing_file(source, "IN")
    options.writable(target, "OUT")
    options.apart(source, target, "OUT")
    mimi = _load(model, codebooks)
    rate_hz = mimi.config.sample_rate_hz
    pcm = read_audio(source, rate_hz)
    padded = pad_to_frames(pcm, mimi.config.frame_size)
    step = mimi.config.frame_size if stream else len(padded)
    state, parts = None, []
    with _watch() as show:
        for start in range(0, len(padded), step):
            made, state = mimi.encode(mx.array(padded[None, start : start + step, None]), state, n_codebooks=codebooks)
            mx.eval(made, state)
            parts.append(np.array(made[0]))
            show(completed=start / rate_hz, total=len(padded) / rate_hz)
    codes = np.concatenate(parts)
    write_codes(target, codes)
    _tell(source, target, codes, len(pcm), mimi, as_json)


@app.command()
def decode(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Codes of csm codec encode or csm say --codes.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="A sound file, .wav, .flac or .mp3, or - for wav on stdout.")
    ],
    codebooks: options.Codebooks = None,
    stream: Stream = False,
    model: options.Model = None,
    as_json: options.Json = False,
) -> None:
    """Turn codes into sound.

    [bold]Examples[/bold]
      csm codec decode hello.safetensors hello.wav
      csm codec decode hello.safetensors - --stream | ffplay -nodisp -autoexit -i -
    """
    import mlx.core as mx
    import numpy as np

    from csm_mlx.audio import AudioWriter
    from csm_mlx_app.codes import read_codes

    options.existing_file(source, "IN")
    if target == "-" and as_json:
        raise typer.BadParameter("both would write to stdout; name a file as OUT", param_hint="--json")
    options.sound_target(target, "OUT")
    options.apart(source, target, "OUT")
    mimi = _load(model, codebooks)
    codes = read_codes(source, mimi.config.codebook_size, mimi.config.n_codebooks)[:, :codebooks]
    rate_hz, frame_rate_hz = mimi.config.sample_rate_hz, mimi.config.frame_rate_hz
    step, state = 1 if stream else len(codes), None
    with _watch() as show, AudioWriter(target, rate_hz) as writer:
        for start in range(0, len(codes), step):
            pcm, state = mimi.decode(mx.array(codes[None, start : start + step]), state)
            mx.eval(pcm, state)
            writer.write(np.array(pcm[0, :, 0], dtype=np.float32))
            show(completed=start / frame_rate_hz, total=len(codes) / frame_rate_hz)
    _tell(source, target, codes, writer.n_samples, mimi, as_json)


@app.command()
def compare(
    reference: Annotated[Path, typer.Argument(metavar="A", help="The original sound.")],
    estimate: Annotated[Path, typer.Argument(metavar="B", help="What became of it.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", rich_help_panel=options.OUTPUT, help="Draw both spectrograms.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure how near B is to A: SI-SNR (higher is nearer) and mel distance (lower is nearer).

    [bold]Examples[/bold]
      csm codec compare hello.wav decoded.wav
      csm codec compare hello.wav decoded.wav --plot spectrogram.png --json
    """
    from csm_mlx import measure
    from csm_mlx.audio import read_audio

    for path, name in ((reference, "A"), (estimate, "B")):
        options.existing_file(path, name)
    if plot is not None:
        options.png(plot, "--plot")
    rate_hz = 24_000
    a, b = read_audio(reference, rate_hz), read_audio(estimate, rate_hz)
    numbers = {
        "si_snr_db": float(measure.si_snr(a, b)),
        "mel_distance": float(measure.mel_distance(a, b, rate_hz)),
        "reference_s": len(a) / rate_hz,
        "estimate_s": len(b) / rate_hz,
    }
    if plot is not None:
        measure.spectrogram_png(plot, a, b, rate_hz)
        console.talk(f"spectrograms -> {plot}")
    if as_json:
        console.data(numbers)
    else:
        console.table(("measure", "value"), [(name, f"{value:.3f}") for name, value in numbers.items()])


def _load(model: str | None, codebooks: int | None) -> "Mimi":
    from csm_mlx_app import loading

    mimi = loading.load(model).codec
    if codebooks is not None and codebooks > mimi.config.n_codebooks:
        raise typer.BadParameter(f"{codebooks}, but this codec has {mimi.config.n_codebooks}", param_hint="--codebooks")
    return mimi


def _watch() -> AbstractContextManager[Callable[..., None]]:
    return console.progress("{task.completed:.1f} of {task.total:.1f} s")


def _tell(source: Path, target: Path | str, codes: "np.ndarray", n_samples: int, mimi: "Mimi", as_json: bool) -> None:
    n_frames, n_codebooks = codes.shape
    bits = mimi.config.frame_rate_hz * n_codebooks * (mimi.config.codebook_size - 1).bit_length()
    sound_s = n_samples / mimi.config.sample_rate_hz
    console.talk(
        f"{source} -> {target}: {sound_s:.2f} s, {n_frames} frames of {n_codebooks} codes, {bits / 1000:.2f} kbit/s"
    )
    if as_json:
        console.data(
            {
                "output": str(target),
                "frames": n_frames,
                "codebooks": n_codebooks,
                "sound_s": sound_s,
                "bits_per_second": bits,
            }
        )
