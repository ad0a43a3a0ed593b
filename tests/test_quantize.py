"""Recipes, what config.json records of them, and what a quantization costs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import layouts

import csm_mlx
from csm_mlx import quantize_report
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError, ContextError, CsmError, QuantizationError
from csm_mlx.frames import Turn, TurnRows
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import (
    RECIPES,
    Quantization,
    apply_quantization,
    bits_per_weight,
    dequantize_model,
    named_parameters,
    plan,
    quantize_model,
    stored_bytes,
)
from csm_mlx.stored import preset


def make_model() -> CsmModel:
    model = CsmModel(layouts.CONFIG.csm)
    model.load_weights([(name, mx.array(w).astype(mx.bfloat16)) for name, w in layouts.make_tiny().model.items()])
    return model


def bits_of(quantization: Quantization) -> dict[str, int]:
    """Bits of every quantized layer by path."""
    model = make_model()
    quantize_model(model, quantization)
    return {path: module.bits for path, module in model.named_modules() if hasattr(module, "bits")}


def test_q4_spares_what_is_heard_most() -> None:
    bits = bits_of(Quantization())

    wide = {path for path, n in bits.items() if n == 8}
    assert wide == {
        "text_embeddings",
        "audio_embeddings",
        "projection",
        "codebook0_head",
        *(f"audio_head.{k}" for k in range(3)),
    }
    assert set(bits.values()) == {4, 8}
    assert len(bits) - len(wide) == 7 * (3 + 2)  # all linear layers of both transformers


def test_mixed_gives_more_to_the_edges_and_to_down_projections() -> None:
    bits = bits_of(Quantization(recipe="mixed"))

    assert bits["backbone.layers.0.self_attn.q_proj"] == 6
    assert bits["backbone.layers.2.mlp.gate_proj"] == 6
    assert bits["backbone.layers.1.mlp.down_proj"] == 6
    assert bits["backbone.layers.1.mlp.up_proj"] == 4
    assert bits["depth_decoder.layers.1.mlp.up_proj"] == 6  # the last of two
    assert bits["audio_head.1"] == 8


def test_bits_alone_are_uniform() -> None:
    assert set(bits_of(Quantization(bits=5)).values()) == {5}
    assert set(bits_of(Quantization(recipe="q8")).values()) == {8}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recorded_quantization_rebuilds_the_same_model(recipe: str) -> None:
    model = make_model()
    config = json.loads(json.dumps(quantize_model(model, Quantization(recipe=recipe))))

    rebuilt = CsmModel(layouts.CONFIG.csm)
    apply_quantization(rebuilt, config)

    def shapes(m: nn.Module) -> dict[str, Any]:
        return {name: p.shape for name, p in named_parameters(m).items()}

    assert shapes(rebuilt) == shapes(model)
    rebuilt.load_weights(list(named_parameters(model).items()))  # strict


def test_csm_1b_at_q4_takes_less_than_five_bits_a_weight() -> None:
    config = preset("csm-1b")
    model = CsmModel(config.csm)
    model.set_dtype(mx.bfloat16)

    recorded = quantize_model(model, Quantization())  # lazily: no array is computed

    backbone = [p for name, p in named_parameters(model).items() if ".layers.3." in name and "norm" not in name]
    weights = sum(p.size * 8 for p in backbone if p.dtype == mx.uint32)
    assert sum(p.nbytes * 8 for p in backbone) / weights == 4.5  # bfloat16 scales; float32 ones would make it 5
    assert bits_per_weight(model) == pytest.approx(
        5.71, abs=0.01
    )  # embeddings and heads, 30 % of the weights, are at 8.5
    assert recorded["audio_head.30"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert model.audio_head[0].weight.shape[0] == 2056
    assert False not in recorded.values()


def test_a_width_that_no_group_divides_takes_a_smaller_one_or_stays_float() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fits, self.small, self.odd = nn.Linear(128, 8), nn.Linear(96, 8), nn.Linear(40, 8)

    model = Odd()
    config, notes = plan(model, Quantization(bits=4))

    assert config["small"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert config["odd"] is False
    assert "fits" not in config
    assert notes == [
        "odd stays float: its width 40 is no multiple of a group size",
        "small has groups of 32: its width is 96",
    ]
    apply_quantization(model, config)
    assert isinstance(model.odd, nn.Linear)
    assert isinstance(model.small, nn.QuantizedLinear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "0 bits were asked for, expected one of 2, 3, 4, 5, 6, 8"),
        ({"bits": 7}, "7 bits were asked for, expected one of 2, 3, 4, 5, 6, 8"),
        ({"group_size": 48}, "groups of 48 were asked for, expected one of 32, 64, 128"),
        ({"mode": "int4"}, "mode 'int4' is unknown, expected one of affine, mxfp4"),
        ({"recipe": "q5"}, "recipe 'q5' is unknown, expected one of q4, q6, q8, mixed"),
        ({"recipe": "q4", "bits": 4}, "recipe 'q4' and 4 bits were both given; choose one"),
        ({"recipe": "q4", "mode": "mxfp4"}, "recipe 'q4' is affine, mode 'mxfp4' was given; choose one"),
        ({"mode": "mxfp4", "bits": 8}, "mode mxfp4 has 4 bits and groups of 32, given were 8 bits"),
    ],
)
def test_what_mlx_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        Quantization(**options)


@pytest.mark.parametrize(
    ("quantization", "name", "defaults"),
    [
        (Quantization(), "q4", (64, 4)),
        (Quantization(group_size=32), "q4, group 32", (32, 4)),
        (Quantization(bits=6), "6 bits", (64, 6)),
        (Quantization(recipe="mixed"), "mixed", (64, 4)),
        (Quantization(mode="nvfp4"), "nvfp4", (16, 4)),
    ],
)
def test_names_and_defaults(quantization: Quantization, name: str, defaults: tuple[int, int]) -> None:
    assert quantization.name == name
    assert (quantization.defaults["group_size"], quantization.defaults["bits"]) == defaults


def test_a_model_is_not_quantized_twice() -> None:
    model = make_model()
    quantize_model(model, Quantization())

    with pytest.raises(QuantizationError, match="quantized already; quantize its float original"):
        quantize_model(model, Quantization())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"group_size": 64}, "quantization: None bits were asked for"),
        ({"group_size": 64, "bits": 4, "projection": 8}, "quantization.projection is 8, expected an object"),
        ({"group_size": 64, "bits": 4, "projection": {"bit": 8}}, "unknown field 'bit'; known are bits, group_size"),
        ({"group_size": 64, "bits": 4, "projection": {"bits": 9}}, "quantization.projection: 9 bits were asked for"),
        ({"group_size": 32, "bits": 8, "mode": "mxfp4"}, r"mode mxfp4, which has \(group size, bits\) \(32, 4\)"),
        ({"group_size": 128, "bits": 4}, "groups of 128, which do not divide its width 192"),
        ({"group_size": 64, "bits": 4, "mode": "x"}, "quantization.mode is 'x', expected one of affine"),
    ],
)
def test_a_record_that_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_quantization(CsmModel(layouts.CONFIG.csm), config)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_activations_keep_the_type_of_the_model(mode: str, dtype: mx.Dtype) -> None:
    model = CsmModel(layouts.CONFIG.csm)
    model.set_dtype(dtype)
    quantize_model(model, Quantization(mode=mode))
    for _ in range(2):
        text, code = model.embed_text(mx.array([[1, 2]])), model.embed_code(mx.array([3]), 1)
        frame = model.embed_audio(mx.zeros((1, 1, model.config.n_codebooks), mx.int32))
        hidden, state = model.backbone(text, model.backbone.make_state(1, model.dtype, 8))
        tensors = [text, code, frame, hidden, model.codebook0_head(hidden), model.depth_input(code), *state["keys"]]
        assert {x.dtype for x in tensors} == {dtype}
        dequantize_model(model, dtype)
        assert {p.dtype for p in named_parameters(model).values()} == {dtype}


# --- the report ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`, and `q8`, `q4`, `q2` made of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    layouts.write_own(folder / "own", layouts.make_tiny())
    for bits in (8, 4, 2):
        convert(folder / "own", folder / f"q{bits}", quantization=Quantization(bits=bits))
    return folder


def make_turns(n_frames: int = 70) -> list[Turn]:
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 16, (n, 4)).astype(np.int32) for n in (n_frames, 5)]
    return [
        Turn(speaker=0, text="abc", codes=codes[0]),
        Turn(speaker=1, text="a cab"),
        Turn(speaker=0, text="deaf", codes=codes[1]),
    ]


def test_teacher_forcing_predicts_what_greedy_speech_chose(checkpoints: Path) -> None:
    csm = csm_mlx.load(checkpoints / "own")
    session = csm.session(seed=0, sampling=SamplingConfig(temperature=0))
    session.add(make_turns(7)[0])
    speech = session.speak("abc", 1, max_seconds=0.5)
    assert sum(len(pcm) for pcm in speech) > 0
    spoken = speech.codes

    logits = mx.concatenate(list(quantize_report.teacher_forced(csm.model, session.turns)))

    choices = np.asarray(logits.argmax(-1))
    assert len(spoken) >= 4
    assert np.array_equal(choices[8 : 8 + len(spoken)], spoken)  # 7 frames and an end frame come before


def test_an_unchanged_model_costs_nothing(checkpoints: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    result = quantize_report.report(
        checkpoints / "own", checkpoints / "own", make_turns(), on_frames=lambda *step: seen.append(step)
    )

    assert result.n_frames == 71 + 6
    assert max(result.kl) < 1e-9
    assert result.top1_agreement == (1.0,) * 4
    assert (result.reference_bits_per_weight, result.candidate_bits_per_weight) == (32.0, 32.0)
    assert seen[-1] == ("candidate", 77, 77)


def test_fewer_bits_cost_more(checkpoints: Path) -> None:
    results = [quantize_report.report(checkpoints / "own", checkpoints / f"q{b}", make_turns()) for b in (8, 4, 2)]

    kl = [r.mean_kl for r in results]
    assert 0 < kl[0] < kl[1] < kl[2]
    assert results[0].mean_top1_agreement > results[2].mean_top1_agreement
    assert [r.candidate_bits_per_weight for r in results] == pytest.approx([8.5, 4.5, 2.5], abs=0.1)
    assert results[0].candidate_bytes > results[1].candidate_bytes > results[2].candidate_bytes
    data = json.loads(json.dumps(results[1].to_dict()))
    assert data["mean_kl"] == kl[1]
    assert len(data["kl"]) == 4


def test_positions_that_run_out_begin_a_new_conversation() -> None:
    model = CsmModel(dataclasses.replace(layouts.CONFIG.csm, max_positions=64))
    codes = np.random.default_rng(0).integers(0, 16, (40, 4)).astype(np.int32)
    turns = [TurnRows((0, 1), codes), TurnRows((0, 1), codes[:10]), TurnRows((0, 1), codes[:30])]

    found = mx.concatenate(list(quantize_report.teacher_forced(model, turns)))

    together = mx.concatenate(list(quantize_report.teacher_forced(model, turns[:2])))
    alone = mx.concatenate(list(quantize_report.teacher_forced(model, turns[2:])))
    assert [len(found), len(together), len(alone)] == [41 + 11 + 31, 41 + 11, 31]
    assert mx.allclose(found, mx.concatenate([together, alone]), atol=1e-4).item()


def test_a_conversation_may_begin_with_sound(checkpoints: Path) -> None:
    model = load_checkpoint(checkpoints / "own").model

    (logits,) = quantize_report.teacher_forced(model, [TurnRows((), np.zeros((3, 4), np.int32))])

    assert logits.shape == (3, 4, 16)  # of three frames and an end frame, all but the first


def test_what_cannot_be_compared_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the turns has sound"):
        quantize_report.report(checkpoints / "own", checkpoints / "q4", [Turn(speaker=0, text="abc")])
    with pytest.raises(ContextError, match=r"the turn 'abc' takes 3009 positions, the model has 2048"):
        quantize_report.report(checkpoints / "own", checkpoints / "q4", make_turns(3000))
    config = layouts.CONFIG.to_dict()
    config["csm"]["n_codebooks"] = 3
    layouts.write_own(tmp_path, layouts.make_tiny())
    vocab = layouts.CONFIG.csm.audio_vocab_size
    weights = {n: w for n, w in layouts.make_tiny().model.items() if n != "audio_head.2.weight"}
    weights["audio_embeddings.weight"] = weights["audio_embeddings.weight"][: 3 * vocab]
    layouts.save(tmp_path / "model.safetensors", weights)
    layouts.write_json(tmp_path / "config.json", config)
    other = layouts.CONFIG.to_dict()
    other["csm"]["max_positions"] = 1024
    layouts.write_own(tmp_path / "short", layouts.make_tiny())
    layouts.write_json(tmp_path / "short" / "config.json", other)
    with pytest.raises(ConfigError, match=r"short has max_positions 1024, .* has 2048; give a checkpoint and its own"):
        quantize_report.report(checkpoints / "own", tmp_path / "short", make_turns())
    with pytest.raises(ConfigError, match=r"has 3 codebooks of 16, .* has 4 of 16"):
        quantize_report.report(checkpoints / "own", tmp_path, make_turns())


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    result = quantize_report.QuantizationReport(
        n_frames=3,
        kl=(0.1, 0.2),
        top1_agreement=(0.9, 0.8),
        reference_bytes=10,
        candidate_bytes=5,
        reference_bits_per_weight=16.0,
        candidate_bits_per_weight=4.5,
    )

    quantize_report.plot(result, tmp_path / "loss.png", "tiny")

    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CsmError, match=r"the folder .* is not there; make it, or choose another place for loss\.png"):
        quantize_report.plot(result, tmp_path / "nowhere" / "loss.png")


@pytest.mark.parametrize("quantization", [None, Quantization(), Quantization(bits=5), Quantization(mode="mxfp4")])
def test_what_a_model_will_take_is_known_before(quantization: Quantization | None) -> None:
    model = make_model()
    expected = stored_bytes(model, quantization)
    if quantization is not None:
        quantize_model(model, quantization)
    assert sum(p.nbytes for p in named_parameters(model).values()) == expected
