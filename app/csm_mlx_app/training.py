"""What `csm train` does between its flags and its adapter: check the clips, state the memory, watch, account."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import typer

from csm_mlx.checkpoint.source import source_name
from csm_mlx.errors import ConfigError, ManifestError
from csm_mlx.lora import AdapterConfig
from csm_mlx.train import (
    CurvePoint,
    EncodedExample,
    Example,
    Manifest,
    StepReport,
    TrainConfig,
    TrainResult,
    encode_examples,
    estimate,
    hold_out,
    read_manifest,
    train,
    training_folder,
)
from csm_mlx.train.output import require_base, require_room
from csm_mlx_app import console, loading, machine, options, places
from csm_mlx_app.curves import Curves

_MAX_EVERY = 10
"""Steps between two lines, where there is no bar; fewer in short trainings, which have about `_N_LINES`."""
_N_LINES = 20
_N_AVERAGED = 10
"""Steps whose loss is told as that of the beginning and of the end."""
_SMOOTHING = 0.9
"""Of a step's seconds, for the pace that is shown."""


def configure(method: str, *, adapter: dict[str, Any], **settings: Any) -> TrainConfig:
    """The configuration that the flags ask for, where None is the default; one that cannot be is wrong usage."""
    adapted = {name: value for name, value in adapter.items() if value is not None}
    given = {name: value for name, value in settings.items() if value is not None}
    if adapted and method == "full":
        flag = "--" + next(iter(adapted)).removesuffix("s")
        raise typer.BadParameter(
            "full trains every weight and makes no adapter; leave one of them out", param_hint=flag
        )
    try:
        if adapted:
            given["adapter"] = AdapterConfig(method=method, **adapted)  # pyright: ignore[reportArgumentType]
        return TrainConfig(method=method, **given)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a training goes: to `out`, anew, over what is there (`force`) or going on from it (`resume`)."""

    out: Path
    resume: bool
    force: bool
    plot: Path | None
    """Of the curves; None is beside `out`."""


class Training:
    """Clips checked and memory estimated: all that can fail early has been tried.

    place: None only counts.
    validation: another manifest, or the share of the clips that is held out.
    speakers: those that may speak; None is any.
    cache: where codes go; None is beside the manifest.

    Every process of a launch works, the first one talks.
    """

    def __init__(
        self,
        manifest: Path,
        config: TrainConfig,
        place: Place | None,
        *,
        model: str | None,
        validation: Path | float | None,
        speakers: Sequence[int] | None,
        resample: bool,
        cache: Path | None,
    ):
        group = mx.distributed.init()
        self._n_ranks, self.talks = group.size(), group.rank() == 0
        self._config, self._place, self._model = config, place, model
        if place is not None and self.talks:
            require_room(place.out, resume=place.resume, force=place.force)
        self._csm = loading.load(model)
        if place is not None and self.talks:
            require_base(place.out, self._csm, config, self._source)
        n_codebooks = self._csm.config.csm.n_codebooks
        self._curves = (
            Curves(place.out, place.plot, n_codebooks, resumed=place.resume) if place and self.talks else None
        )
        paths = [manifest, validation] if isinstance(validation, Path) else [manifest]
        self._manifests = _read(
            paths, lambda path: read_manifest(path, self._csm, speakers=speakers, resample=resample)
        )
        self._clips: Sequence[Example] = self._manifests[0].examples
        self._held_out: Sequence[Example] = self._manifests[-1].examples if len(paths) > 1 else ()
        if isinstance(validation, float):
            self._clips, self._held_out = hold_out(self._clips, validation)
        self._cache = cache or self._manifests[0].cache_folder
        self._memory = estimate(self._csm, config, [*self._clips, *self._held_out])
        self._available_bytes = machine.usable_bytes()
        self._n_steps = config.total_steps(len(self._clips), self._n_ranks)

    def tell(self) -> None:
        """What is about to be done, and whether it fits."""
        if not self.talks:
            return
        for manifest in self._manifests:
            for line in manifest.warnings:
                console.note(line)
        clips, seconds = self._manifests[0].clips_by_speaker, self._manifests[0].seconds_by_speaker
        speakers = "; ".join(f"speaker {n}: {clips[n]}, {_length(seconds[n])}" for n in clips)
        which = "more" if len(self._manifests) > 1 else "of them"
        held_out = f"; {len(self._held_out)} {which} to validate on" if self._held_out else ""
        console.talk(f"clips: {sum(clips.values())}, {_length(self._seconds)} ({speakers}){held_out}")
        adapter, memory = self._config.adapter_config, self._memory
        what = f"{adapter.method} of rank {adapter.rank} on" if adapter else "every weight of"
        per_step = _count(self._config.global_batch(self._n_ranks), "clip")
        console.talk(
            f"training: {what} {source_name(self._source)}, {memory.n_trainable / 1e6:.2f} million weights, "
            f"{_count(self._n_steps, 'step')} of {per_step}"
        )
        sizes = (memory.total_bytes, self._available_bytes, memory.weights_bytes, memory.training_bytes)
        total, here, weights, trained = map(console.size, sizes)
        processes = f" in each of {self._n_ranks} processes" if self._n_ranks > 1 else ""
        console.talk(
            f"memory: {total} expected at the peak{processes}, of {here} here (weights {weights}, training them "
            f"{trained}, activations {console.size(memory.activation_bytes)})"
        )
        if advice := memory.advice(self._available_bytes):
            console.note(advice)

    @property
    def _source(self) -> str:
        return options.resolve_model(self._model)

    @property
    def _seconds(self) -> float:
        """Of sound in the manifest, what is held out of it included."""
        return sum(self._manifests[0].seconds_by_speaker.values())

    def run(self) -> "Trained":
        """Encode the clips, and train."""
        place, curves = self._place, self._curves
        assert place is not None
        clips, held_out = self._encode(self._clips), self._encode(self._held_out)
        start_s = time.monotonic()
        with _interruption(self.talks) as interrupted:
            with _watch(self._n_steps) as show:

                def on_step(report: StepReport) -> None:
                    show(report)
                    if curves is not None:
                        curves.add(report)

                result = train(
                    self._csm,
                    self._config,
                    clips,
                    place.out,
                    validation=held_out,
                    resume=place.resume,
                    force=place.force,
                    base=self._source,
                    summary={"clips": len(clips), "seconds": round(self._seconds, 2)},
                    on_step=on_step,
                    should_stop=lambda: interrupted() is not None,
                )
            return Trained(
                result=result,
                seconds=time.monotonic() - start_s,
                picture=curves.path if curves is not None and curves.finish(result.curve) else None,
                signal=interrupted() if result.stopped == "interrupted" else None,
                model=self._model,
                whole=self._config.adapter_config is None,
            )

    def _encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        with console.progress("{task.completed}/{task.total} clips as codes") as show:
            return encode_examples(
                self._csm, examples, cache=self._cache, on_clip=lambda n, total: show(completed=n, total=total)
            )

    def to_dict(self) -> dict[str, Any]:
        """What is known before it starts; sizes in bytes."""
        first = self._manifests[0]
        return {
            "model": str(self._csm.path),
            "config": self._config.to_dict(),
            "clips": len(self._clips),
            "validation_clips": len(self._held_out),
            "seconds_by_speaker": first.seconds_by_speaker,
            "clips_by_speaker": first.clips_by_speaker,
            "warnings": [line for manifest in self._manifests for line in manifest.warnings],
            "total_steps": self._n_steps,
            "trainable_weights": self._memory.n_trainable,
            "memory": asdict(self._memory)
            | {
                "total_bytes": self._memory.total_bytes,
                "available_bytes": self._available_bytes,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it."""

    result: TrainResult
    seconds: float
    picture: Path | None
    signal: int | None
    """Which one stopped it early."""
    model: str | None
    whole: bool
    """Whether it made a checkpoint and no adapter."""

    def tell(self) -> None:
        """What was made, and the next command."""
        result = self.result
        out = shlex.quote(str(result.out))
        n_steps = min(_N_AVERAGED, -(-len(result.curve) // 4))
        first, last = _mean_loss(result.curve[:n_steps]), _mean_loss(result.curve[-n_steps:])
        done = {"done": "trained", "patience": "stopped early, as nothing got better,", "interrupted": "interrupted"}
        console.talk(
            f"{done[result.stopped]} after {result.steps} of {_count(result.total_steps, 'step')}, "
            f"{_clock(self.seconds)} of work: loss {first:.3f} -> {last:.3f}, "
            f"at most {console.size(result.peak_bytes)} of memory"
        )
        if result.best is not None:
            console.talk(f"kept: the weights of step {result.best_step}, validation loss {result.best.total:.3f}")
        if self.picture is not None:
            console.talk(f"curves -> {self.picture}")
        if result.stopped == "interrupted":
            console.talk(f"saved in {training_folder(result.out)}")
            console.talk(f"to go on: {_resuming()}")
            return
        console.talk(f"{'checkpoint' if self.whole else 'adapter'} -> {result.out}")
        if self.whole:
            console.talk(f'next: csm say "Hello there." --model {out}')
            return
        model = f" --model {shlex.quote(self.model)}" if self.model else ""
        console.talk(f'next: csm say "Hello there."{model} --adapter {out}')
        console.talk(f"  or: csm fuse {out}{model} -o {shlex.quote(str(places.weights() / result.out.name))}")

    def to_dict(self) -> dict[str, Any]:
        """The numbers of `--json`; times in seconds, memory in bytes, losses in nats."""
        result = self.result
        return {
            "output": str(result.out),
            "stopped": result.stopped,
            "steps": result.steps,
            "seconds": self.seconds,
            "peak_memory_bytes": result.peak_bytes,
            "losses": result.losses and asdict(result.losses),
            "best_step": result.best_step,
            "best": result.best and asdict(result.best),
            "curves": self.picture and str(self.picture),
            "curve": [asdict(point) for point in result.curve],
        }


def _mean_loss(points: Sequence[CurvePoint]) -> float:
    """One step's is noisy: it is of a few clips, and of a few of their frames."""
    return sum(point.losses.total for point in points) / len(points)


def _resuming() -> str:
    """The command that goes on with what this one began."""
    if mx.distributed.init().size() > 1:
        return "the same command, and --resume"
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--force", "--resume")]
    return shlex.join(["csm", *arguments, "--resume"])


def _read(paths: Sequence[Path], read: Callable[[Path], Manifest]) -> list[Manifest]:
    """All of them; `ManifestError` lists the problems of all."""
    manifests, problems = [], []
    for path in paths:
        try:
            manifests.append(read(path))
        except ManifestError as error:
            problems.append(str(error))
    if problems:
        raise ManifestError("\n".join(problems))
    return manifests


@contextmanager
def _interruption(talks: bool) -> Iterator[Callable[[], int | None]]:
    """Within it Ctrl-C and SIGTERM only ask to stop; yields what tells which of them came. A second one is obeyed."""
    came: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if talks:
            first = "stopping after this step, and saving; once more to stop at once"
            message = first if len(came) == 1 else "stopped at once; --resume goes on from the last save, if any"
            os.write(2, f"{message}\n".encode())  # a print would be refused if the signal came into one
        if len(came) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watch(n_steps: int) -> Iterator[Callable[[StepReport], None]]:
    """Yields what shows a step: on a terminal as a bar, else as a line every few steps; validations are lines."""
    line = "{task.completed}/{task.total} steps  loss {task.fields[loss]}  lr {task.fields[rate]}  {task.fields[pace]}"
    every = min(_MAX_EVERY, max(1, n_steps // _N_LINES))
    seconds: float | None = None
    with console.progress(line) as show:

        def on_step(report: StepReport) -> None:
            nonlocal seconds
            seconds = report.seconds if seconds is None else _SMOOTHING * seconds + (1 - _SMOOTHING) * report.seconds
            n, total, loss, rate = report.step, report.total_steps, f"{report.losses.total:.3f}", report.learning_rate
            pace = f"{_pace(seconds)}  {_clock(seconds * (total - n))} left"
            show(completed=n, total=total, loss=loss, rate=f"{rate:.1e}", pace=pace)
            if not sys.stderr.isatty() and (n % every == 0 or n in (1, total)):
                console.talk(f"step {n}/{total}  loss {loss}  lr {rate:.1e}  {pace}")
            if report.validation is not None:
                best = ", the best so far" if report.best else ""
                console.talk(f"step {n}/{total}  validation loss {report.validation.total:.3f}{best}")

        yield on_step


def _pace(seconds: float) -> str:
    return f"{1 / seconds:.1f} steps/s" if 0 < seconds < 1 else f"{seconds:.1f} s a step"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _length(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
