"""The one training: adapters and whole models differ in which weights are trained, and in nothing else."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten

from csm_mlx.errors import ConfigError, TrainingError
from csm_mlx.generate.session import Csm
from csm_mlx.lora import attach, seed_dropout, trainable
from csm_mlx.quantize import named_parameters
from csm_mlx.train import output
from csm_mlx.train.config import TrainConfig
from csm_mlx.train.data import (
    FRAMES,
    VALIDATION_FRAMES,
    Batch,
    EncodedExample,
    chosen_frames,
    data_hash,
    make_batch,
    n_chosen_frames,
    step_examples,
)
from csm_mlx.train.loss import Losses, checkpointed_blocks, codebook_sums, mean_losses, objective
from csm_mlx.train.state import (
    CurvePoint,
    Stop,
    TrainState,
    read_state,
    require_same,
    state_path,
    write_state,
)
from csm_mlx.train.update import update

_HASHED_ELEMENTS = 1 << 16
"""Larger weights are left out of the base model's fingerprint: the norms tell models apart."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step did."""

    step: int
    """From 1 on."""
    total_steps: int
    losses: Losses
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    n_frames: int
    """Learnt in this step, on all ranks."""
    seconds: float
    validation: Losses | None
    """When this step validated."""
    best: bool
    """Whether that validation was the best so far."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    out: Path
    """The adapter, or the whole checkpoint."""
    stopped: Stop
    steps: int
    total_steps: int
    n_trainable: int
    losses: Losses | None
    """Of the last step."""
    best_step: int | None
    best: Losses | None
    """Of the best validation, whose weights `out` holds; without validation `out` holds the last ones."""
    curve: tuple[CurvePoint, ...]
    peak_bytes: int
    """The most that MLX held, the model included."""


OnStep = Callable[[StepReport], None]


def is_main_rank() -> bool:
    """Whether this process is the one that writes and reports; of `mlx.launch`'s, the first."""
    return mx.distributed.init().rank() == 0


def train(
    csm: Csm,
    config: TrainConfig,
    examples: Sequence[EncodedExample],
    out: str | Path,
    *,
    validation: Sequence[EncodedExample] = (),
    resume: bool = False,
    force: bool = False,
    base: str | Path | None = None,
    summary: dict[str, Any] | None = None,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train `csm.model` in place and write an adapter, or with `full` a whole checkpoint, to the folder `out`.

    The model is left as the last step made it, its adapter attached. Under `mlx.launch` every process calls this with
    the same arguments; the first one writes and calls back, and a resumed one's state must be where all can read it.

    resume: go on from the last state saved beside `out`; the result is what an uninterrupted training gives.
    force: replace `out` and an earlier training's state.
    base: what the model was loaded from, a folder or a repository; `csm.path` by default.
    summary: free data for the adapter's config.
    should_stop: asked after every step; true saves the state and returns.

    Raises ConfigError, TrainingError (nothing to resume, another configuration or data, losses that are no numbers)
    and CheckpointError (disk).
    """
    trainer = _Trainer(csm, config, examples, validation, Path(out).expanduser())
    trainer.base, trainer.summary = base or csm.path, summary or {}
    trainer.begin(resume=resume, force=force)
    with trainer.training_mode():
        stopped = trainer.run(on_step, should_stop)
    state = trainer.state
    return TrainResult(
        out=trainer.out,
        stopped=stopped,
        steps=state.step,
        total_steps=trainer.total_steps,
        n_trainable=sum(w.size for w in state.weights.values()),
        losses=state.curve[-1].losses if state.curve else None,
        best_step=state.best_step,
        best=state.best,
        curve=tuple(state.curve),
        peak_bytes=max(mx.get_peak_memory(), mx.get_active_memory()),
    )


class _Trainer:
    def __init__(
        self,
        csm: Csm,
        config: TrainConfig,
        examples: Sequence[EncodedExample],
        validation: Sequence[EncodedExample],
        out: Path,
    ):
        if not examples:
            raise ConfigError("there are no examples to train on; give at least one")
        max_positions = csm.config.csm.max_positions
        max_rows = min(config.max_rows or max_positions, max_positions)
        self.csm, self.model, self.config, self.out = csm, csm.model, config, out
        self.examples = [example.fitted(max_rows) for example in examples]
        self.validation = [example.fitted(max_rows) for example in validation]
        self.group = mx.distributed.init()
        self.rank, self.n_ranks = self.group.rank(), self.group.size()
        self.total_steps = config.total_steps(len(self.examples), self.n_ranks)
        self.validate_every = config.validate_every or config.steps_per_epoch(len(self.examples), self.n_ranks)
        self.base: str | Path = csm.path
        self.summary: dict[str, Any] = {}

    def begin(self, *, resume: bool, force: bool) -> None:
        """Everything that can be refused, before the work; then the weights to begin with."""
        saved = read_state(state_path(self.out)) if resume else None
        if self.rank == 0:
            output.require_room(self.out, resume=resume, force=force)
            output.require_base(self.out, self.csm, self.config, self.base)
        identity = self._identity()
        if saved is not None:
            require_same(saved.identity, identity, state_path(self.out))
            if saved.best_step is not None and self.rank == 0 and not self.out.is_dir():
                raise TrainingError(f"{self.out}, which held the best weights, is gone; start anew with --force")
        if self.config.adapter_config is not None:
            attach(self.model, self.config.adapter_config, seed=self.config.seed)
        parameters = trainable(self.model, self.config.method)
        self.dtypes = {name: weight.dtype for name, weight in parameters.items()}
        weights = {name: weight.astype(mx.float32) for name, weight in parameters.items()}
        if saved is None:
            moments = [{name: mx.zeros_like(w) for name, w in weights.items()} for _ in range(2)]
            saved = TrainState(identity=identity, weights=weights, m=moments[0], v=moments[1])
            if self.rank == 0:
                output.begin(self.out, saved)
        elif {n: w.shape for n, w in saved.weights.items()} != {n: w.shape for n, w in weights.items()}:
            raise TrainingError(f"{state_path(self.out)} holds other weights than this training's; start with --force")
        self.state = saved
        mx.eval(saved.arrays())
        self._use(saved.weights)

    def _identity(self) -> dict[str, Any]:
        config = self.config.to_dict()
        digest = hashlib.sha256(repr(self.csm.config).encode())
        for name, weight in sorted(named_parameters(self.model).items()):
            if weight.size <= _HASHED_ELEMENTS and mx.issubdtype(weight.dtype, mx.floating):
                digest.update(name.encode())
                digest.update(np.array(weight.astype(mx.float32)).tobytes())
        identity = config | {
            "adapter": self.config.adapter_config.to_dict() if self.config.adapter_config else None,
            "learning_rate": self.config.peak_learning_rate,
            "ranks": self.n_ranks,
            "examples": data_hash(self.examples),
            "validation": data_hash(self.validation),
            "base model": digest.hexdigest(),
        }
        if self.n_ranks > 1:
            mine = int(hashlib.sha256(repr(identity).encode()).hexdigest()[:6], 16)
            total = mx.distributed.all_sum(mx.array(mine, mx.int32), group=self.group).item()
            if total != mine * self.n_ranks:
                raise TrainingError(
                    f"rank {self.rank} was given another configuration, model or examples than the others; give all "
                    "the same files"
                )
        return identity

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Inside, dropout is on; afterwards the model holds the last whole step's weights and can speak."""
        mx.reset_peak_memory()
        self.model.train()
        try:
            with checkpointed_blocks(self.model) if self.config.checkpoint_blocks else nullcontext():
                yield
        finally:
            self.model.eval()
            self._use(self.state.weights)

    def run(self, on_step: OnStep | None, should_stop: Callable[[], bool] | None) -> Stop:
        """Steps until something ends them."""
        state = self.state
        if state.stopped == "patience":
            return "patience"
        while state.step < self.total_steps:
            try:
                report = self._step()
            except TrainingError:
                self._use(state.weights)
                if state.step:
                    self._save()
                raise
            if on_step is not None and self.rank == 0:
                on_step(report)
            stop = self._early() or ("interrupted" if self._agree(should_stop is not None and should_stop()) else None)
            if stop and state.step < self.total_steps:
                state.stopped = stop
                break
            if state.step % self.config.save_every == 0 and state.step < self.total_steps:
                self._save()
        else:
            state.stopped = "done"
        self._save()
        assert state.stopped is not None
        return state.stopped

    def _early(self) -> Stop | None:
        patience = self.config.patience
        return "patience" if patience is not None and self.state.n_worse >= patience else None

    def _agree(self, mine: bool) -> bool:
        """Whether any rank says so."""
        if self.n_ranks == 1:
            return mine
        return bool(mx.distributed.all_sum(mx.array(int(mine)), group=self.group).item())

    def _save(self) -> None:
        if self.rank == 0:
            write_state(state_path(self.out), self.state)
            if self.state.best is None:
                self._write_out()

    def _write_out(self) -> None:
        if self.rank == 0:
            progress = {"steps": self.state.step, "method": self.config.method, "n_examples": len(self.examples)}
            output.write(self.out, self.csm, self.config, self.base, progress | self.summary)

    def _use(self, weights: dict[str, mx.array]) -> None:
        """Puts weights into the model, in the types that it has."""
        cast = [(name, weight.astype(self.dtypes[name])) for name, weight in weights.items()]
        self.model.update(tree_unflatten(cast))

    def _step(self) -> StepReport:
        """One update; `TrainingError`, with nothing changed, when it would be made of no numbers."""
        started, config, state = time.perf_counter(), self.config, self.state
        batches, n_frames, n_chosen = self._batches()
        gradients, sums, bad = self._gradients(batches, n_frames, n_chosen)
        gradients, norm = optim.clip_grad_norm(gradients, config.clip_norm)
        losses = mean_losses(np.array(sums), n_frames, n_chosen, config.depth_weight)
        grad_norm = float(np.array(norm))
        if not np.isfinite(losses.total) or not np.isfinite(grad_norm):
            what = f"loss is {losses.total}" if not np.isfinite(losses.total) else f"gradient's norm is {grad_norm}"
            raise TrainingError(
                f"at step {state.step + 1} the {what}, with the examples {self._names(bad)}; the state before it is "
                "saved: look at these clips, or start anew with a lower learning rate"
            )
        rate = config.learning_rate_at(state.step, self.total_steps)
        for weights in update(state, gradients, config, rate):
            self._use(weights)
        state.step += 1
        validation, best = self._validate() if self._validates() else (None, False)
        point = CurvePoint(step=state.step, learning_rate=rate, losses=losses, validation=validation)
        state.curve.append(point)
        return StepReport(
            step=state.step,
            total_steps=self.total_steps,
            losses=losses,
            learning_rate=rate,
            grad_norm=grad_norm,
            n_frames=n_frames,
            seconds=time.perf_counter() - started,
            validation=validation,
            best=best,
        )

    def _batches(self) -> tuple[list[Batch], int, int]:
        """This rank's batches of the next step; all ranks' frames, and those learnt to the last codebook."""
        config, step = self.config, self.state.step
        n_examples = config.global_batch(self.n_ranks)
        indices = step_examples(config.seed, step, len(self.examples), n_examples)
        lengths = [self.examples[i].n_frames for i in indices]
        n_chosen = sum(n_chosen_frames(n, config.depth_share) for n in lengths)
        batches = []
        for start in range(self.rank * config.batch, n_examples, self.n_ranks * config.batch):
            batches.append(self._batch(self.examples, indices[start : start + config.batch], FRAMES, step))
        return batches, sum(lengths), n_chosen

    def _batch(self, examples: Sequence[EncodedExample], indices: Sequence[int], purpose: int, step: int) -> Batch:
        config = self.config
        chosen = [
            chosen_frames(config.seed, purpose, step, i, examples[i].n_frames, config.depth_share) for i in indices
        ]
        return make_batch([examples[i] for i in indices], chosen)

    def _gradients(
        self, batches: list[Batch], n_frames: int, n_chosen: int
    ) -> tuple[dict[str, mx.array], mx.array, list[int]]:
        """(gradients, summed losses) of all ranks' batches, and which of these, in the step's order, gave no number."""

        def loss(weights: dict[str, mx.array], batch: Batch) -> tuple[mx.array, mx.array]:
            self._use(weights)
            sums = codebook_sums(self.model, batch)
            return objective(sums, n_frames, n_chosen, self.config.depth_weight), sums

        gradients: dict[str, mx.array] = {}
        total, bad = mx.zeros(self.model.config.n_codebooks), mx.zeros((len(batches), self.n_ranks), mx.int32)
        for number, batch in enumerate(batches):
            self._seed_dropout(number)
            (_, sums), new = mx.value_and_grad(loss)(self.state.weights, batch)
            gradients = {name: gradients[name] + g for name, g in new.items()} if gradients else new
            total = total + sums
            bad[number, self.rank] = mx.logical_not(mx.isfinite(sums).all())
            mx.eval(gradients, total, bad)
        if self.n_ranks > 1:
            averaged = nn.average_gradients(list(gradients.values()), self.group)
            gradients = {name: self.n_ranks * g for name, g in zip(gradients, averaged, strict=True)}
            total, bad = (mx.distributed.all_sum(x, group=self.group) for x in (total, bad))
        return gradients, total, np.flatnonzero(np.array(bad)).tolist()

    def _names(self, batches: Sequence[int]) -> str:
        """The examples of the step's batches of these numbers, or of all for none."""
        size, n_examples = self.config.batch, self.config.global_batch(self.n_ranks)
        indices = step_examples(self.config.seed, self.state.step, len(self.examples), n_examples)
        named = [i for number in batches for i in indices[number * size : (number + 1) * size]] or indices
        return ", ".join(dict.fromkeys(self.examples[i].where for i in named))

    def _seed_dropout(self, number: int) -> None:
        adapter = self.config.adapter_config
        if adapter is not None and adapter.dropout:
            drawn = np.random.default_rng([self.config.seed, self.state.step, self.rank, number]).integers(1 << 62)
            seed_dropout(self.model, mx.random.key(int(drawn)))

    def _validates(self) -> bool:
        step = self.state.step
        return bool(self.validation) and (step % self.validate_every == 0 or step == self.total_steps)

    def _validate(self) -> tuple[Losses, bool]:
        """Losses on the examples held out, and whether they are the best so far, in which case `out` is written."""
        config, state = self.config, self.state
        sums, starts = mx.zeros(self.model.config.n_codebooks), range(0, len(self.validation), config.batch)
        self.model.eval()
        for start in list(starts)[self.rank :: self.n_ranks]:
            indices = range(start, min(start + config.batch, len(self.validation)))
            sums = sums + codebook_sums(self.model, self._batch(self.validation, indices, VALIDATION_FRAMES, 0))
            mx.eval(sums)
        self.model.train()
        if self.n_ranks > 1:
            sums = mx.distributed.all_sum(sums, group=self.group)
        lengths = [example.n_frames for example in self.validation]
        n_chosen = sum(n_chosen_frames(n, config.depth_share) for n in lengths)
        losses = mean_losses(np.array(sums), sum(lengths), n_chosen, config.depth_weight)
        best = bool(np.isfinite(losses.total)) and (state.best is None or losses.total < state.best.total)
        state.n_worse = 0 if best else state.n_worse + 1
        if best:
            state.best, state.best_step = losses, state.step
            self._write_out()
        return losses, best
