"""Conversion: the same file from every layout, little memory, and nothing lost whatever goes wrong."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support import layouts

from csm_mlx.audio import write_audio
from csm_mlx.checkpoint import read
from csm_mlx.checkpoint.convert import ConvertReport, convert
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.checkpoint.save import SafetensorsWriter
from csm_mlx.errors import CheckpointError, ConfigError, QuantizationError, TokenizerError
from csm_mlx.quantize import Quantization, bits_per_weight, quantize_model
from csm_mlx.stored import CheckpointConfig
from csm_mlx.voices import VoiceStore


@pytest.fixture(scope="module")
def tiny() -> layouts.Tiny:
    return layouts.make_tiny()


@pytest.fixture
def source(tiny: layouts.Tiny, tmp_path: Path) -> Path:
    layouts.write_transformers(tmp_path / "source", tiny)
    return tmp_path / "source"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def parameters(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(p) for name, p in tree_flatten(module.parameters())}


@pytest.mark.parametrize("quantization", [None, Quantization()], ids=["float", "q4"])
def test_every_layout_converts_to_the_same_file(
    quantization: Quantization | None, tiny: layouts.Tiny, tmp_path: Path
) -> None:
    written = {}
    for layout, write in layouts.LAYOUTS.items():
        write(tmp_path / layout, tiny)
        convert(tmp_path / layout, tmp_path / f"{layout}-out", quantization=quantization)
        out = contents(tmp_path / f"{layout}-out")
        config = json.loads(out.pop("config.json"))
        config.pop("source", None)
        written[layout] = (out, config)

    own, *others = written.values()
    assert set(own[0]) == {"model.safetensors", "codec.safetensors", "tokenizer.json"}
    assert all(other == own for other in others)


def test_float32_loses_nothing(source: Path, tiny: layouts.Tiny, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", dtype="float32")

    loaded = load_checkpoint(tmp_path / "out")
    assert all(np.array_equal(p, tiny.model[name]) for name, p in parameters(loaded.model).items())
    assert all(np.array_equal(p, tiny.codec[name]) for name, p in parameters(loaded.codec).items())
    n_weights = sum(w.size for w in tiny.model.values())
    assert (report.n_weights, report.bits_per_weight, report.dtype) == (n_weights, 32.0, "float32")
    assert report.model_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.codec_bytes == (tmp_path / "out" / "codec.safetensors").stat().st_size
    assert (report.layout, report.quantization, report.notes) == ("transformers", None, ())
    assert json.loads(json.dumps(report.to_dict()))["out"] == str(tmp_path / "out")


def test_a_conversion_of_a_conversion_changes_nothing(source: Path, tmp_path: Path) -> None:
    for quantization in (None, Quantization(recipe="mixed")):
        convert(source, tmp_path / "one", quantization=quantization, force=True)
        convert(tmp_path / "one", tmp_path / "two", force=True)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_blocks_of_rows_give_what_the_whole_gives(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "whole", quantization=Quantization())
    monkeypatch.setattr(read, "BLOCK_ELEMENTS", 1000)
    convert(source, tmp_path / "blocks", quantization=Quantization())

    assert contents(tmp_path / "whole") == contents(tmp_path / "blocks")


@pytest.mark.parametrize(
    "quantization",
    [Quantization(), Quantization(recipe="q8"), Quantization(bits=3, group_size=32), Quantization(mode="mxfp8")],
    ids=lambda q: q.name,
)
def test_quantizing_on_the_way_is_quantizing_the_model(
    quantization: Quantization, source: Path, tmp_path: Path
) -> None:
    report = convert(source, tmp_path / "out", quantization=quantization)

    loaded = load_checkpoint(tmp_path / "out", dtype=mx.bfloat16, unpack=False)
    reference = load_checkpoint(source, dtype=mx.bfloat16).model
    assert loaded.config.quantization == quantize_model(reference, quantization)
    expected = dict(tree_flatten(reference.parameters()))
    found = dict(tree_flatten(loaded.model.parameters()))
    assert set(found) == set(expected)
    assert all(mx.array_equal(found[name], p).item() for name, p in expected.items())
    assert report.bits_per_weight == pytest.approx(bits_per_weight(loaded.model))
    assert report.quantization == quantization.name


def test_scales_are_bfloat16(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", quantization=Quantization())

    tensors = read.read_tensors(tmp_path / "out" / "model.safetensors")
    assert {t.stored for n, t in tensors.items() if n.endswith((".scales", ".biases"))} == {"BF16"}
    assert {t.stored for t in read.read_tensors(tmp_path / "out" / "codec.safetensors").values()} == {"F32"}


def test_a_quantized_source_passes_through_as_it_is(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_mlx_community_quantized(tmp_path / "source", tiny)

    report = convert(tmp_path / "source", tmp_path / "out", dtype="float32")

    one, two = (load_checkpoint(tmp_path / name, unpack=False) for name in ("source", "out"))
    assert all(np.array_equal(p, parameters(two.model)[n]) for n, p in parameters(one.model).items())
    assert one.config.quantization == two.config.quantization
    assert report.dtype == "bfloat16"
    assert report.bits_per_weight == pytest.approx(
        bits_per_weight(load_checkpoint(tmp_path / "out", dtype=mx.bfloat16, unpack=False).model)
    )
    with pytest.raises(QuantizationError, match=r"is quantized already \(8 bits\); quantize its float original"):
        convert(tmp_path / "out", tmp_path / "again", quantization=Quantization())
    assert not (tmp_path / "again").exists()


def test_progress_counts_every_tensor(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    convert(source, tmp_path / "out", on_tensor=lambda *step: seen.append(step))

    total = seen[0][2]
    assert [done for _, done, _ in seen] == list(range(1, total + 1))
    assert {"text_embeddings.weight", "quantizer.acoustic.codebooks"} <= {name for name, _, _ in seen}


def test_a_notice_is_recorded_and_kept(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one", notice="It babbles.")
    convert(tmp_path / "one", tmp_path / "two")

    assert CheckpointConfig.read(tmp_path / "two" / "config.json").notice == "It babbles."


def test_recommended_sampling_is_recorded(source: Path, tmp_path: Path) -> None:
    layouts.write_json(source / "generation_config.json", {"temperature": 0.6, "top_k": 20, "use_cache": True})
    convert(source, tmp_path / "out")
    sampling = CheckpointConfig.read(tmp_path / "out" / "config.json").sampling
    assert (sampling.temperature, sampling.top_k) == (0.6, 20)


# --- voices --------------------------------------------------------------------------------------------------------


def test_sesames_prompt_clips_become_voices(source: Path, tmp_path: Path) -> None:
    (source / "prompts").mkdir()
    tone = np.sin(np.arange(44_100) / 20).astype(np.float32) / 4
    for name in ("read_speech_a", "unheard_of"):
        write_audio(source / "prompts" / f"{name}.wav", tone, 44_100)
    (source / "prompts" / "read_speech_b.wav").write_bytes(b"RIFF")

    report = convert(source, tmp_path / "out")

    assert report.voices == ("read_speech_a",)
    assert "unheard_of.wav is no voice: its words are not known" in report.notes
    assert [n for n in report.notes if n.startswith("read_speech_b.wav is no voice: ")]
    store = VoiceStore(tmp_path / "out" / "voices")
    (voice,) = store.list()
    assert voice.text.startswith("And Lake turned round upon me")
    assert voice.seconds == pytest.approx(1, abs=0.01)
    codec = load_checkpoint(tmp_path / "out").codec
    assert store.codes("read_speech_a", codec).shape[1] == 4
    again = convert(tmp_path / "out", tmp_path / "again")
    assert again.voices == ("read_speech_a",)
    assert contents(tmp_path / "again" / "voices") == contents(tmp_path / "out" / "voices")


# --- nothing is lost -----------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint in the way; it must be as it was, with nothing left beside it, after the test."""
    layouts.write_own(tmp_path / "place" / "out", layouts.make_tiny(1))
    before = contents(tmp_path / "place")
    yield tmp_path / "place" / "out"
    assert contents(tmp_path / "place") == before
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["out"]


def test_an_existing_checkpoint_is_not_replaced_unasked(source: Path, old: Path) -> None:
    with pytest.raises(CheckpointError, match=r"out exists; choose another place, or replace it with --force"):
        convert(source, old)


def test_force_replaces_a_checkpoint(source: Path, tmp_path: Path) -> None:
    layouts.write_own(tmp_path / "out", layouts.make_tiny(1))
    convert(source, tmp_path / "fresh")

    convert(source, tmp_path / "out", force=True)

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "out", "source"]


def test_force_replaces_nothing_but_checkpoints(source: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "home")

    with pytest.raises(CheckpointError, match=r"holds more than a checkpoint \(thesis.tex\)"):
        convert(source, tmp_path / "home", force=True)
    for name in ("file", "link"):
        with pytest.raises(CheckpointError, match=f"{name} exists and is no folder"):
            convert(source, tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"
    layouts.write_json(tmp_path / "home" / "config.json", {"model_type": "csm"})
    (tmp_path / "home" / "thesis.tex").rename(tmp_path / "home" / "README.md")
    with pytest.raises(
        CheckpointError, match=r"home exists and is no checkpoint of csm-mlx: its config\.json states no"
    ):
        convert(source, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "README.md").read_text() == "years"


def test_a_source_is_not_replaced_by_itself(source: Path, old: Path) -> None:
    del source
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(old, old, quantization=Quantization(), force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing_behind(error: type[BaseException], source: Path, old: Path) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 40:
            raise error

    with pytest.raises(error):
        convert(source, old, force=True, on_tensor=stop)


def test_weights_that_are_no_numbers_leave_nothing_behind(source: Path, tiny: layouts.Tiny, old: Path) -> None:
    weights = {**layouts.transformers_csm(tiny.model), **layouts.transformers_mimi(tiny, "codec_model.")}
    name = "depth_decoder.model.norm.weight"
    weights[name] = np.full_like(weights[name], np.nan)
    layouts.save(source / "model.safetensors", weights)

    with pytest.raises(CheckpointError, match=rf"'{name}' in model.safetensors holds 64 NaN and 0 infinite weights"):
        convert(source, old, force=True)


def test_what_float16_cannot_hold_is_refused(source: Path, tiny: layouts.Tiny, old: Path) -> None:
    weights = {**layouts.transformers_csm(tiny.model), **layouts.transformers_mimi(tiny, "codec_model.")}
    weights["lm_head.weight"] = np.full_like(weights["lm_head.weight"], 1e6)
    layouts.save(source / "model.safetensors", weights)

    with pytest.raises(CheckpointError, match=r"'lm_head.weight' .* holds 1e\+06, which float16 cannot; convert to bf"):
        convert(source, old, dtype="float16", force=True)


def test_a_cut_source_leaves_nothing_behind(source: Path, old: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short"):
        convert(source, old, force=True)


def test_a_broken_tokenizer_is_noticed_before_anything_is_written(source: Path, old: Path) -> None:
    (source / "tokenizer.json").write_text("{}")

    with pytest.raises(TokenizerError, match=r"tokenizer.json"):
        convert(source, old, force=True)


def test_an_unknown_dtype_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int8', expected one of bfloat16, float16, float32"):
        convert(source, tmp_path / "out", dtype="int8")  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match=r"cannot write .*file/out: .*; choose another place"):
        convert(source, tmp_path / "file" / "out")


def script(body: str, *args: Any) -> list[str]:
    return [sys.executable, "-c", "import sys\nfrom pathlib import Path\n" + body, *map(str, args)]


CONVERT = """
from csm_mlx.checkpoint.convert import convert
from csm_mlx.errors import CsmError
try:
    shown = lambda name, done, total: print(done, flush=True)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), force=True, on_tensor=shown)
except CsmError as error:
    sys.exit(str(error))
"""


def test_a_disk_that_fills_up_leaves_nothing_behind(source: Path, old: Path) -> None:
    limit = 200_000  # bytes, less than the model: the system refuses the write that goes past it
    run = subprocess.run(
        script(CONVERT, source, old),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )

    assert run.returncode == 1
    assert "cannot write model.safetensors" in run.stderr
    assert "free some space or choose another place" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.startswith("1\n2\n")  # it had begun


def test_folders_made_on_the_way_go_too(source: Path, tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "here").mkdir()
    for out in (tmp_path / "here" / "new" / "out", tmp_path / "a" / "b" / "out"):
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, on_tensor=interrupt)
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "a").exists()


def test_ctrl_c_leaves_nothing_behind(source: Path, old: Path) -> None:
    slow = CONVERT.replace("print(done, flush=True)", "(print(done, flush=True), __import__('time').sleep(0.2))")
    process = subprocess.Popen(script(slow, source, old), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert len(list(old.parent.iterdir())) == 2  # the temporary folder is there
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)

    assert "KeyboardInterrupt" in stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, where the system lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0 and sys.platform == "linux"
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_too_small_is_noticed_before_writing(source: Path, small_disk: Path) -> None:
    with pytest.raises(CheckpointError, match=r"out needs 0\.00 GB, its disk has 0\.00 GB free; free some space"):
        convert(source, small_disk / "out")
    assert list(small_disk.iterdir()) == []


def write_zeros(path: Path, shape: tuple[int, int], n_rows: int) -> None:
    with SafetensorsWriter(path, {"x": (mx.float32, shape)}) as writer:
        for first in range(0, n_rows, 100):
            writer.write_rows("x", first, mx.zeros((min(100, n_rows - first), shape[1])))


def test_a_full_disk_is_named(small_disk: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write x\.safetensors in .*: the disk is full \(0\.00 GB free\)"):
        write_zeros(small_disk / "x.safetensors", (600, 1000), 600)


def test_a_writer_refuses_what_was_not_announced_and_misses_what_was(tmp_path: Path) -> None:
    specs: dict[str, tuple[mx.Dtype, tuple[int, ...]]] = {"x": (mx.float32, (4, 2))}
    with SafetensorsWriter(tmp_path / "good.safetensors", specs) as writer:
        writer.write_rows("x", 2, mx.ones((2, 2)))
        writer.write_rows("x", 0, mx.zeros((2, 2)))
        for rows in (mx.ones((3, 2)), mx.ones((1, 3)), mx.ones((1, 2), mx.float16)):
            with pytest.raises(ValueError, match="'x' was announced as"):
                writer.write_rows("x", 2, rows)
    loaded: Any = mx.load(str(tmp_path / "good.safetensors"))
    assert loaded["x"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"short\.safetensors lacks rows of x"):
        write_zeros(tmp_path / "short.safetensors", (4, 2), 3)


MEMORY = """
from csm_mlx.checkpoint.convert import convert, peak_resident_bytes
from csm_mlx.quantize import Quantization
convert(Path(sys.argv[1]), Path(sys.argv[2]) / "warm")
before = peak_resident_bytes()
tokenizer = Path(sys.argv[1]) / "tokenizer.json"
convert(Path(sys.argv[3]), Path(sys.argv[2]) / "out", quantization=Quantization(), tokenizer=tokenizer)
print(peak_resident_bytes() - before)
"""


def test_a_large_table_is_never_held_whole(source: Path, tiny: layouts.Tiny, tmp_path: Path) -> None:
    rows, dim = 400_000, layouts.CONFIG.csm.backbone.dim
    big = tmp_path / "big"
    weights = layouts.transformers_csm(tiny.model) | layouts.transformers_mimi(tiny, "codec_model.")
    del weights["embed_text_tokens.weight"]
    layouts.save(big / "a.safetensors", weights)
    header = json.dumps(
        {"embed_text_tokens.weight": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, rows * dim * 4]}}
    ).encode()
    with (big / "b.safetensors").open("wb") as file:  # sparse: 205 MB that take no disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * dim * 4)
    names = dict.fromkeys(weights, "a.safetensors") | {"embed_text_tokens.weight": "b.safetensors"}
    layouts.write_json(big / "model.safetensors.index.json", {"weight_map": names})
    layouts.write_json(big / "config.json", layouts.transformers_config() | {"text_vocab_size": rows})

    start = time.perf_counter()
    run = subprocess.run(script(MEMORY, source, tmp_path, big), capture_output=True, text=True, check=True)

    growth = int(run.stdout)
    assert 0 < growth < 100e6, f"{growth / 1e6:.0f} MB for a table of {rows * dim * 4 / 1e6:.0f} MB"
    assert time.perf_counter() - start < 60


def test_the_peak_is_not_that_of_who_started_it() -> None:
    ask = "from csm_mlx.checkpoint.convert import peak_resident_bytes\nprint(peak_resident_bytes())"
    large = """
import subprocess
import numpy as np
from csm_mlx.checkpoint.convert import peak_resident_bytes
held = np.ones(75_000_000)
print(peak_resident_bytes())
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
    run = subprocess.run(script(large, ask), capture_output=True, text=True, check=True)
    own, of_its_child = map(int, run.stdout.split())
    assert own > 600e6
    assert 10e6 < of_its_child < 400e6


def test_the_report_is_of_its_own_type(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out")

    assert isinstance(report, ConvertReport)
    assert 0 < report.seconds < 60
    assert report.peak_memory_bytes > 10e6
