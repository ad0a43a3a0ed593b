"""Whole trainings of small random models: what is learnt, and that nothing but mathematics decides it."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.layouts import make_tiny, write_own
from support.models import csm_config, llama, random_csm
from support.training import byte_csm, largest_difference, python, random_examples

from csm_mlx.checkpoint.adapter import read_adapter
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.errors import CheckpointError, ConfigError, TrainingError
from csm_mlx.frames import TurnRows
from csm_mlx.generate.session import Csm
from csm_mlx.lora import AdapterConfig
from csm_mlx.quantize import Quantization, named_parameters, quantize_model
from csm_mlx.train import EncodedExample, StepReport, TrainConfig, plot_curves, read_curve, train, training_folder
from csm_mlx.train.state import read_state, state_path

SMALL = csm_config(
    backbone=llama(32, n_layers=1, n_heads=2, n_kv_heads=1), depth=llama(32, n_layers=1, n_heads=2, n_kv_heads=1)
)
EVERYTHING = AdapterConfig(targets=("*",), rank=16)
QUICK = TrainConfig(adapter=AdapterConfig(rank=4), steps=6, batch=2, learning_rate=1e-2, warmup=2, save_every=2)


def small() -> Csm:
    return random_csm(SMALL)


def run(out: Path, config: TrainConfig = QUICK, csm: Csm | None = None, **options: Any):
    csm = csm or small()
    return train(csm, config, random_examples(csm.config.csm), out, **options)


def saved(out: Path) -> dict[str, mx.array]:
    return read_state(state_path(out)).arrays()


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(adapter=EVERYTHING, steps=30, batch=2, learning_rate=3e-2, depth_share=1.0, weight_decay=0.0),
        TrainConfig(
            method="dora",
            adapter=replace(EVERYTHING, method="dora"),
            steps=80,
            batch=2,
            learning_rate=3e-2,
            depth_share=1.0,
            weight_decay=0.0,
        ),
    ],
    ids=["lora", "dora"],
)
def test_an_adapter_learns_a_batch_by_heart(config: TrainConfig, tmp_path: Path) -> None:
    csm = small()
    before = {name: mx.array(w) for name, w in named_parameters(csm.model).items()}
    result = train(csm, config, random_examples(SMALL, (6, 4)), tmp_path / "out")
    assert result.losses
    assert result.losses.total < 0.05
    assert result.curve[0].losses.total > 5
    assert result.stopped == "done"
    assert result.n_trainable == sum(w.size for w in read_adapter(tmp_path / "out").weights.values())
    after = named_parameters(csm.model)
    for name, weight in before.items():  # what was there is as it was, under its own name or its layer's
        held = after[name] if name in after else after[name.replace(".weight", ".linear.weight")]
        assert mx.array_equal(held, weight)


def test_a_whole_model_learns_a_batch_by_heart(tmp_path: Path) -> None:
    write_own(tmp_path / "base", make_tiny())
    csm = byte_csm(tmp_path / "base")
    examples = random_examples(csm.config.csm, (5, 7))
    config = TrainConfig(method="full", steps=32, batch=2, learning_rate=2e-2, depth_share=1.0, weight_decay=0.0)
    result = train(csm, config, examples, tmp_path / "out")
    assert result.losses
    assert result.losses.total < 0.05
    assert result.n_trainable == sum(w.size for w in named_parameters(csm.model).values())
    again = named_parameters(load_checkpoint(tmp_path / "out").model)
    assert largest_difference(again, named_parameters(csm.model)) < 1e-2  # the base is stored in 16 bits or 32


def test_a_quantized_base_stays_as_it_is(tmp_path: Path) -> None:
    csm = small()
    quantize_model(csm.model, Quantization(bits=4, group_size=32))
    before = dict(named_parameters(csm.model))
    result = run(tmp_path / "out", replace(QUICK, steps=12), csm)
    assert result.curve[-1].losses.total < result.curve[0].losses.total - 0.2
    after = named_parameters(csm.model)
    packed = [name for name in after if after[name].dtype == mx.uint32]
    assert len(packed) > 10
    for name in packed:
        assert mx.array_equal(after[name], before[name.replace(".linear.", ".")])
    quantized = small()
    quantize_model(quantized.model, Quantization(bits=4, group_size=32))
    write_own(tmp_path / "base", make_tiny())
    with pytest.raises(ConfigError, match="quantized"):
        run(tmp_path / "full", TrainConfig(method="full", steps=1), quantized, base=tmp_path / "base")


def test_sixteen_bit_models_are_trained_in_float32(tmp_path: Path) -> None:
    """Updates below what bfloat16 can tell apart must not get lost."""
    write_own(tmp_path / "base", make_tiny())
    csm = byte_csm(tmp_path / "base", mx.bfloat16)
    run(tmp_path / "out", TrainConfig(method="full", steps=2, learning_rate=1e-6, warmup=0), csm)
    assert csm.model.dtype == mx.bfloat16
    weight = read_state(state_path(tmp_path / "out")).weights["backbone.norm.weight"]
    assert weight.dtype == mx.float32
    assert not mx.array_equal(weight, weight.astype(mx.bfloat16).astype(mx.float32))


def test_accumulated_batches_equal_a_large_one(tmp_path: Path) -> None:
    config = replace(QUICK, batch=4, steps=3)
    run(tmp_path / "large", config)
    for n_parts, changes in {4: {"batch": 1}, 2: {"batch": 2}, 1: {"checkpoint_blocks": True}}.items():
        run(tmp_path / str(n_parts), replace(config, accumulate=n_parts, **changes))
        assert largest_difference(saved(tmp_path / "large"), saved(tmp_path / str(n_parts))) < 1e-5, changes


def test_recomputed_blocks_drop_the_same(tmp_path: Path) -> None:
    config = replace(QUICK, steps=2, adapter=AdapterConfig(rank=4, dropout=0.5))
    run(tmp_path / "kept", config)
    run(tmp_path / "recomputed", replace(config, checkpoint_blocks=True))
    run(tmp_path / "without", replace(config, adapter=AdapterConfig(rank=4)))
    assert largest_difference(saved(tmp_path / "kept"), saved(tmp_path / "recomputed")) < 1e-6
    assert largest_difference(saved(tmp_path / "kept"), saved(tmp_path / "without")) > 1e-3


def test_two_ranks_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_train as t
from support.training import random_examples
steps = []
validation = random_examples(t.SMALL, (6, 3, 5), seed=1)
t.run(Path(sys.argv[1]) / "two", t.replace(t.QUICK, steps=3), validation=validation, on_step=steps.append)
Path(sys.argv[1], f"steps{{len(steps)}}").touch()
"""
    done = python(code, tmp_path, launch=2)
    assert done.returncode == 0, done.stdout + done.stderr
    validation = random_examples(SMALL, (6, 3, 5), seed=1)
    one = run(tmp_path / "one", replace(QUICK, batch=4, steps=3), validation=validation)
    assert largest_difference(saved(tmp_path / "one"), saved(tmp_path / "two")) < 1e-5
    assert (tmp_path / "steps3").exists(), "the first rank reports"
    assert (tmp_path / "steps0").exists(), "the second one is silent"
    for ours, theirs in zip(one.curve, read_curve(tmp_path / "two"), strict=True):
        assert ours.losses.total == pytest.approx(theirs.losses.total, rel=1e-5)
        assert ours.validation is not None
        assert theirs.validation is not None
        assert ours.validation.groups == pytest.approx(theirs.validation.groups, rel=1e-5)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Bit for bit, with dropout, accumulation and validation, and stopped where nothing was to be saved."""
    config = replace(QUICK, adapter=AdapterConfig(rank=4, dropout=0.2), batch=1, accumulate=2, validate_every=2)
    options: dict[str, Any] = {"validation": random_examples(SMALL, (5, 3), seed=1)}
    whole = run(tmp_path / "whole", config, **options)
    steps: list[int] = []
    for n_before in (3, 4, None):
        result = run(
            tmp_path / "parts",
            config,
            resume=bool(steps),
            on_step=lambda report: steps.append(report.step),
            should_stop=lambda n=n_before: steps[-1] == n,
            **options,
        )
        assert result.stopped == ("interrupted" if n_before else "done")
    assert steps == [1, 2, 3, 4, 5, 6]
    first, second = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert all(mx.array_equal(first[name], second[name]) for name in first)
    assert (result.curve, result.best, result.best_step) == (whole.curve, whole.best, whole.best_step)
    adapters = [read_adapter(tmp_path / name).weights for name in ("whole", "parts")]
    assert largest_difference(*adapters) == 0
    again = run(tmp_path / "parts", config, resume=True, **options)
    assert (again.steps, again.stopped) == (6, "done")


def test_a_killed_training_goes_on_from_its_last_save(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_train as t
def on_step(report):
    if report.step == 5: os.kill(os.getpid(), signal.SIGKILL)
t.run(Path(sys.argv[1]) / "killed", on_step=on_step)
"""
    done = python(code, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_state(state_path(tmp_path / "killed")).step == 4
    run(tmp_path / "killed", resume=True)
    run(tmp_path / "whole")
    assert largest_difference(saved(tmp_path / "killed"), saved(tmp_path / "whole")) == 0


KILLED_WRITE = """
import os, signal, sys
from pathlib import Path
from csm_mlx.checkpoint import save
from csm_mlx.train.state import read_state, write_state
path = Path(sys.argv[1])
state = read_state(path)
state.step = 99
write_rows, count = save.SafetensorsWriter.write_rows, iter(range(int(sys.argv[2])))
def dying(self, *args):
    write_rows(self, *args)
    if next(count, None) is None: os.kill(os.getpid(), signal.SIGKILL)
save.SafetensorsWriter.write_rows = dying
write_state(path, state)
"""
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from csm_mlx.errors import CheckpointError
from csm_mlx.train.state import read_state, write_state
path = Path(sys.argv[1])
state = read_state(path)
state.step = 99
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2,) * 2)
try:
    write_state(path, state)
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_kill_or_a_full_disk_leaves_the_saved_state_whole(tmp_path: Path) -> None:
    config = replace(QUICK, steps=1)
    run(tmp_path / "out", config)
    path = state_path(tmp_path / "out")
    before = path.read_bytes()
    assert python(KILLED_WRITE, path, 5).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    refused = python(FULL_DISK, path)
    assert refused.returncode == 1
    assert "refused: cannot write .state.safetensors.part in" in refused.stderr
    assert path.read_bytes() == before
    assert run(tmp_path / "out", config, resume=True).steps == 1


def test_the_best_weights_are_kept_and_patience_ends_it(tmp_path: Path) -> None:
    examples = random_examples(SMALL)
    unlike = [EncodedExample("held:1", (TurnRows((5, 6), np.full((6, 4), 3, np.int32)),))]
    config = replace(QUICK, steps=40, validate_every=2, patience=2, learning_rate=3e-2)
    reports: list[StepReport] = []
    result = train(small(), config, examples, tmp_path / "out", validation=unlike, on_step=reports.append)
    assert result.stopped == "patience"
    assert result.best_step
    assert result.steps == result.best_step + 4
    validated = {r.step: r.validation.total for r in reports if r.validation}
    assert list(validated) == list(range(2, result.steps + 1, 2))
    assert result.best
    assert result.best.total == min(validated.values()) == validated[result.best_step]
    assert [r.step for r in reports if r.best][-1] == result.best_step
    adapter = read_adapter(tmp_path / "out")
    assert adapter.summary["steps"] == result.best_step
    last = read_state(state_path(tmp_path / "out")).weights
    assert largest_difference(adapter.weights, last) > 1e-3
    assert train(small(), config, examples, tmp_path / "out", validation=unlike, resume=True).stopped == "patience"


def test_no_number_stops_it_with_the_last_good_state(tmp_path: Path) -> None:
    csm = small()
    examples = random_examples(SMALL, (5, 6, 4))
    rare = EncodedExample("poison.jsonl:9", (TurnRows((250, 251), examples[0].turns[-1].codes),))
    csm.model.text_embeddings.weight[250] = float("nan")
    examples.append(rare)
    reports: list[StepReport] = []
    config = replace(QUICK, batch=1, save_every=50)
    with pytest.raises(TrainingError, match=r"at step \d the loss is nan, with the examples poison.jsonl:9;"):
        train(csm, config, examples, tmp_path / "out", on_step=reports.append)
    state = read_state(state_path(tmp_path / "out"))
    assert 0 < state.step == len(reports) < 4
    assert all(bool(mx.isfinite(array).all()) for array in state.arrays().values())


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training to resume"):
        run(tmp_path / "out", resume=True)
    run(tmp_path / "out")
    with pytest.raises(TrainingError, match="go on with it with --resume, or replace it with --force"):
        run(tmp_path / "out")
    cases: list[tuple[TrainConfig, Csm, dict[str, Any], str]] = [
        (replace(QUICK, learning_rate=2e-3), small(), {}, "learning_rate is 0.002, it had 0.01"),
        (replace(QUICK, adapter=AdapterConfig(rank=5)), small(), {}, "training: rank is 5, it had 4;"),
        (replace(QUICK, steps=7), small(), {}, "steps is 7, it had 6"),
        (replace(QUICK, steps=None, epochs=3), small(), {}, "epochs is 3, it had None"),
        (QUICK, random_csm(SMALL, seed=3), {}, "the base model is another"),
        (QUICK, small(), {"validation": random_examples(SMALL)}, "the examples to validate with are others"),
    ]
    for config, csm, options, message in cases:
        with pytest.raises(TrainingError, match=message):
            run(tmp_path / "out", config, csm, resume=True, **options)
    with pytest.raises(TrainingError, match="the examples are others"):
        train(small(), QUICK, random_examples(SMALL, seed=2), tmp_path / "out", resume=True)
    harmless = replace(QUICK, save_every=1, checkpoint_blocks=True, adapter=AdapterConfig(rank=4))
    assert run(tmp_path / "out", harmless, resume=True).steps == 6
    state_path(tmp_path / "out").write_bytes(b"no state")
    with pytest.raises(TrainingError, match="is no state of a training"):
        run(tmp_path / "out", resume=True)
    assert run(tmp_path / "out", force=True).steps == 6


def test_a_lost_result_is_not_gone_on_with(tmp_path: Path) -> None:
    validation = random_examples(SMALL, (4,), seed=1)
    config = replace(QUICK, steps=2)
    run(tmp_path / "out", config, validation=validation)
    os.rename(tmp_path / "out", tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="is gone"):
        run(tmp_path / "out", config, validation=validation, resume=True)


def test_what_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hours of a training nor, with `force`, the earlier one."""
    run(tmp_path / "out", replace(QUICK, steps=1))
    before = state_path(tmp_path / "out").read_bytes()
    steps: list[StepReport] = []
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(CheckpointError, match="free some space"):
            run(tmp_path / "out", force=True, on_step=steps.append)
    assert state_path(tmp_path / "out").read_bytes() == before
    (tmp_path / "other.training").write_text("a file where the folder would be")
    with pytest.raises(CheckpointError, match="choose another place"):
        run(tmp_path / "other", on_step=steps.append)
    assert not steps


def test_the_model_itself_is_never_replaced(tmp_path: Path) -> None:
    write_own(tmp_path / "base", make_tiny())
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="would be lost"):
        run(tmp_path / "base", QUICK, byte_csm(tmp_path / "base"), force=True)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_curves(tmp_path: Path) -> None:
    result = run(tmp_path / "out", replace(QUICK, steps=2), validation=random_examples(SMALL, (4,), seed=1))
    assert read_curve(tmp_path / "out") == result.curve
    assert [point.step for point in result.curve] == [1, 2]
    path = training_folder(tmp_path / "out") / "curves.png"
    plot_curves(result.curve, SMALL.n_codebooks, path, "out")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in path.parent.iterdir()) == ["curves.png", "state.safetensors"]


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no examples"):
        train(small(), QUICK, [], tmp_path / "out")
    with pytest.raises(ConfigError, match="random:3 takes 20 positions"):
        run(tmp_path / "out", replace(QUICK, max_rows=19))
    assert not list(tmp_path.iterdir())
