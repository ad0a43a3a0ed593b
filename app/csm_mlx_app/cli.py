"""The console script `csm`: one Typer application, and the edge where errors become one line and an exit code."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from csm_mlx_app import console
from csm_mlx_app.commands import (
    bench,
    codec,
    convert,
    devices,
    doctor,
    duplex,
    evaluate,
    fuse,
    models,
    quantize,
    say,
    talk,
    train,
    transcribe,
    voices,
)

# Click's usage errors moved from `click` to `typer._click` between Typer's versions: this finds them in either.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel="Speak")(say.say)
app.command(rich_help_panel="Speak")(talk.talk)
app.command(rich_help_panel="Speak")(duplex.duplex)
app.command(rich_help_panel="Listen")(transcribe.transcribe)
app.add_typer(voices.app, name="voices", rich_help_panel="Speak")
app.command(rich_help_panel="Checkpoints")(convert.convert)
app.command(rich_help_panel="Checkpoints")(quantize.quantize)
app.command(rich_help_panel="Checkpoints")(train.train)
app.command(rich_help_panel="Checkpoints")(fuse.fuse)
app.command(rich_help_panel="Checkpoints")(models.models)
app.add_typer(codec.app, name="codec", rich_help_panel="Tools")
app.command(rich_help_panel="Tools")(evaluate.evaluate)
app.command(rich_help_panel="Tools")(bench.bench)
app.command(rich_help_panel="Tools")(devices.devices)
app.command(rich_help_panel="Tools")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from csm_mlx import __version__

        print(f"csm-mlx {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def csm(
    context: typer.Context,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Conversational speech on MLX: nothing leaves this machine.

    [bold]Examples[/bold]
      csm say "Hello there, how are you today?"
      csm convert unsloth/csm-1b weights/csm-1b-q4 -q
      csm say "The same in Sesame's voice." --model csm-1b-q4 -o hello.wav
      csm train clips.jsonl -o adapters/anna
      csm doctor
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> NoReturn:
    """Run `csm` and exit; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    _fill_descriptors()
    _leave(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """`csm ARGUMENTS…`: 0 done, 1 failed, 2 wrong usage, 130 interrupted. `CSM_DEBUG=1` shows the traceback."""
    try:
        # Without standalone mode Typer returns the code of an Exit and leaves every error to us.
        code = app(list(arguments), prog_name="csm", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit as end:
        code = end.code
    except Exception as error:
        if os.environ.get("CSM_DEBUG", "") not in ("", "0"):
            raise
        code = _report(error)
    return code if isinstance(code, int) else 0


def _fill_descriptors() -> None:
    """Where stdin was closed (`<&-`), the next file would get its number, 0, which MLX takes for a failure."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def _leave(code: int) -> NoReturn:
    """As `sys.exit`; but after a conversation without waiting for threads inside native code, and without Python's end.

    Such threads abort the process when they ask for Python's lock after its end: whisper's when it is interrupted, and
    MLX's when its caches are freed, which happens after `Thread.join` has returned.
    """
    if not sys.modules.keys() & {f"csm_mlx_app.{name}" for name in ("talking", "duplexing", "transcribing")}:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader is gone, or it never was there
            stream.flush()
    os._exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    # An exception instead of sudden death: open files are finished, temporary ones removed.
    sys.exit(128 + signal.SIGTERM)


def _report(error: Exception) -> int:
    if isinstance(error, UsageError):
        command = getattr(getattr(error, "ctx", None), "command_path", "csm")
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        message = message.removeprefix("Invalid value: ").rstrip(".")
        console.error(f"{message}; see '{command} --help'")
        return 2
    from csm_mlx.errors import CsmError

    if isinstance(error, CsmError):
        console.error(str(error))
    elif isinstance(error, OSError) and error.strerror:
        console.error(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        console.error(f"{what}; this is a defect in csm: CSM_DEBUG=1 shows where, please report it")
    return 1
