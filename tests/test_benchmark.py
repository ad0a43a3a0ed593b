"""The benchmark's arithmetic and what it reports; that its figures are true, only a quiet machine can show."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from support.memory import arrays_of_others
from support.models import csm_config, llama, random_csm, random_csm_model

import csm_mlx
from csm_mlx.benchmark import BareProducts, Benchmark, benchmark, count_nodes, frame_bytes, plot
from csm_mlx.config import CsmConfig, TransformerConfig
from csm_mlx.errors import ConfigError, GenerationError
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import Quantization, named_parameters, quantize_model
from csm_mlx.stored import any_preset, preset

ROOT = Path(__file__).parent.parent


def matrix_weights(c: TransformerConfig) -> int:
    attention = c.dim * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
    return c.n_layers * (attention + 3 * c.dim * c.ffn_dim)


def norm_weights(c: TransformerConfig) -> int:
    return c.dim * (2 * c.n_layers + 1)


def frame_weights(csm: CsmConfig) -> tuple[int, int]:
    """Weights that a frame reads: (in matrices, in norms)."""
    again = csm.n_codebooks - 1
    heads = csm.head_rows * (csm.backbone.dim + again * csm.depth.dim)
    matrices = matrix_weights(csm.backbone) + again * matrix_weights(csm.depth) + heads
    return matrices + csm.backbone.dim * csm.depth.dim, norm_weights(csm.backbone) + again * norm_weights(csm.depth)


def constructed(csm: CsmConfig, recipe: str | None = None) -> CsmModel:
    """A model of csm-1b's size that nobody computes."""
    model = CsmModel(csm)
    model.set_dtype(mx.bfloat16)
    if recipe:
        quantize_model(model, Quantization(recipe=recipe))
    return model


def test_a_frame_reads_the_backbone_once_and_the_depth_decoder_for_every_other_code() -> None:
    csm = preset("csm-1b").csm
    matrices, norms = frame_weights(csm)
    assert matrices == pytest.approx(4.49e9, rel=0.01)
    assert frame_bytes(constructed(csm)) == 2 * (matrices + norms)


def test_quantized_weights_count_with_their_scales() -> None:
    csm = preset("csm-1b").csm
    matrices, norms = frame_weights(csm)
    assert frame_bytes(constructed(csm, "q8")) == pytest.approx(8.5 / 8 * matrices + 2 * norms, rel=1e-6)
    layers = matrix_weights(csm.backbone) + 31 * matrix_weights(csm.depth)
    expected = 4.5 / 8 * layers + 8.5 / 8 * (matrices - layers) + 2 * norms
    assert frame_bytes(constructed(csm, "q4")) == pytest.approx(expected, rel=1e-6)


def test_a_step_of_moshi_reads_a_set_of_depth_weights_for_each_codebook() -> None:
    """The figures of reference/moshi.md: 14.75 GB in bfloat16 without embeddings; Hibiki's last set serves eight."""
    config = any_preset("moshi-7b")
    assert config.model_type == "moshi"
    moshi = MoshiModel(config.moshi)
    moshi.set_dtype(mx.bfloat16)
    assert frame_bytes(moshi) == pytest.approx(14.75e9, rel=0.01)
    quantize_model(moshi, Quantization(recipe="q4"))
    assert frame_bytes(moshi) == pytest.approx((4.5 * 7.155e9 + 8.5 * 0.185e9) / 8, rel=0.02)
    config = any_preset("hibiki-2b")
    assert config.model_type == "moshi"
    hibiki = config.moshi
    assert hibiki.depth is not None
    depth = matrix_weights(hibiki.depth)
    expected = matrix_weights(hibiki.temporal) + hibiki.n_generated * depth + 48000 * 2560
    expected += 9 * 2560 * 1024 + 16 * 2048 * 1024 + 16 * 128 * 1024
    model = MoshiModel(hibiki)
    model.set_dtype(mx.bfloat16)
    assert frame_bytes(model) == pytest.approx(2 * expected, rel=1e-3)


@pytest.mark.parametrize("recipe", [None, "q8"])
def test_bare_products_are_those_of_one_frame(recipe: str | None) -> None:
    csm = csm_config(backbone=llama(64), depth=llama(64, n_heads=2, n_kv_heads=1))
    model = random_csm_model(csm)
    if recipe:
        quantize_model(model, Quantization(recipe=recipe, group_size=32))
        mx.eval(model.parameters())
    outputs = [y for product in BareProducts(model).build() for y in product]
    again, heads = csm.n_codebooks - 1, csm.n_codebooks * [csm.codebook_size]
    backbone = 2 * [64 + 32 + 32, 64, 128, 128, 64]  # q, k and v, o, gate, up, down
    depth = 2 * again * [32 + 16 + 16, 64, 128, 128, 64]
    assert sorted(y.shape[1] for y in outputs) == sorted([*backbone, *depth, 64, *heads])
    assert count_nodes(*outputs) <= len(outputs) + len(heads)  # of which a head's last rows may be cut off
    prefill = [y for product in BareProducts(model, prefill_rows=5).build() for y in product]
    assert sorted(y.shape for y in prefill) == sorted((5, rows) for rows in backbone)


def test_every_figure_of_the_embedded_voice(tmp_path: Path) -> None:
    others = arrays_of_others()
    csm, seen = csm_mlx.load(), []
    result = benchmark(csm, n_frames=30, on_frames=lambda done, total: seen.append((done, total)))
    assert len(result.frame_ms) == 30
    assert seen[-1] == (30, 30)
    assert result.frame_budget_ms == 80
    assert result.frame_p50_ms <= result.frame_p99_ms <= max(result.frame_ms)
    assert 0 < result.decode_ms < 10 * result.frame_p50_ms
    assert 0 < result.floor_share < 1
    weights = sum(p.nbytes for part in (csm.model, csm.codec) for p in named_parameters(part).values())
    assert weights < result.peak_bytes - others < weights + 200e6
    assert min(result.first_audio_s, result.first_audio_cold_s, result.encode_ms, result.graph_build_ms) > 0
    assert 100 < result.graph_nodes < 2000
    assert 0.1 < result.memory_gb_per_s < 10_000
    assert result.real_time_factor * 80 == pytest.approx(result.frame_p50_ms, rel=4)
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["frame_p99_ms"] == result.frame_p99_ms
    assert numbers["frame_ms"] == list(result.frame_ms)
    plot(result, tmp_path / "frames.png", "csm-tiny")
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_shares_and_percentiles() -> None:
    times = dict.fromkeys(
        ("first_audio_s", "first_audio_cold_s", "real_time_factor", "prefill_s_per_100_rows", "encode_ms"), 1.0
    )
    result = Benchmark(
        frame_ms=(*[10.0] * 98, 50.0, 90.0),
        frame_budget_ms=80.0,
        decode_ms=1.0,
        peak_bytes=1,
        frame_bytes=400_000_000,
        floor_ms=4.0,
        memory_gb_per_s=200.0,
        graph_nodes=1,
        graph_build_ms=1.0,
        **times,
    )
    assert result.floor_share == pytest.approx(0.4)
    assert result.floor_gb_per_s == pytest.approx(100)
    assert result.bandwidth_ms == pytest.approx(2)
    assert result.frame_p50_ms == 10
    assert 50 <= result.frame_p99_ms <= 90


def test_what_cannot_be_timed() -> None:
    with pytest.raises(ConfigError, match=r"n_frames is 0, expected 1 or more"):
        benchmark(random_csm(), n_frames=0)
    mute = random_csm()
    mute.model.codebook0_head.weight = mx.zeros_like(mute.model.codebook0_head.weight)
    for head in mute.model.audio_head:
        head.weight = mx.zeros_like(head.weight)
    greedy = replace(mute.config, sampling=replace(mute.config.sampling, temperature=0.0))
    with pytest.raises(GenerationError):
        benchmark(replace(mute, config=greedy), n_frames=4)


@pytest.mark.slow
def test_the_developers_benchmark_measures_reports_and_says_why_not(tmp_path: Path) -> None:
    """`make bench` on a row that needs no weights: ours is measured, a rival without its environment is a reason."""
    cache = tmp_path / "weights"
    (cache / "narrow").mkdir(parents=True)
    for file in csm_mlx.default_checkpoint().iterdir():
        (cache / "narrow" / file.name).symlink_to(file)
    command = [sys.executable, str(ROOT / "tests" / "bench" / "run.py"), "--stages", "overhead", "--rounds", "2"]
    command += ["--peers", "csm-mlx,mlx-audio", "--cache", str(cache), "--out", str(tmp_path / "docs")]
    environment = os.environ | {"BENCH_PYTHON": "/nowhere/python", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'app'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "docs" / "benchmarks.json").read_text())
    assert len(result["samples"]["overhead_frame"]["csm-mlx"]) == 20
    assert all(sample["cpu_ms"] > 0 for sample in result["samples"]["overhead_build"]["csm-mlx"])
    assert result["samples"]["overhead_nodes"]["csm-mlx"][0]["value"] > 100
    reason = "/nowhere/python is not there; `make bench` makes it"
    assert result["missing"]["overhead_frame"] == {"mlx-audio": reason}
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| a frame |" in page
    assert f"[1] {reason}" in page
    assert (tmp_path / "docs" / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
