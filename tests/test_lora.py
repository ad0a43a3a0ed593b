"""Adapters: nothing changes until they are trained, the formulas are the papers', and fused equals unfused."""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import largest, random_csm_model

from csm_mlx import lora
from csm_mlx.errors import ConfigError
from csm_mlx.lora import AdapterConfig, adapter_parameters, adapters, attach, detach, fuse_model, settle, trainable
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import Quantization, dequantized, named_parameters, quantize_model

EVERYTHING = (*lora.DEFAULT_TARGETS, "*head*")
Q4, MXFP4 = Quantization(), Quantization(mode="mxfp4")
METHODS = pytest.mark.parametrize("method", ["lora", "dora"])
BASES = pytest.mark.parametrize("quantization", [None, Q4, MXFP4], ids=["float", "q4", "mxfp4"])


def base(quantization: Quantization | None = None) -> CsmModel:
    model = random_csm_model()
    if quantization:
        quantize_model(model, quantization)
    return model


def train_at_random(model: CsmModel) -> None:
    """What a training could have made of the adapter."""
    mx.random.seed(5)
    for layer in adapters(model).values():
        for name, size in (("lora_b", 0.1), ("magnitude", 0.3)):
            if name in layer:
                layer[name] = layer[name] + size * mx.random.normal(layer[name].shape)


def adapted(method: str = "lora", quantization: Quantization | None = None, **changes) -> CsmModel:
    model = base(quantization)
    attach(model, AdapterConfig.from_dict({"method": method, "targets": EVERYTHING, **changes}))
    train_at_random(model)
    return model


def named(tree: Any) -> dict[str, mx.array]:
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def answers(model: CsmModel) -> mx.array:
    """Logits of frames that follow a few rows of text."""
    rows = model.embed_text(mx.array([[1, 5, 7, 9, 11, 2]]))
    hidden, _ = model.backbone(rows, model.backbone.make_state(1, model.dtype, 8))
    return model.frame_logits(hidden[0], mx.array([[3, 1, 4, 1]] * 6))


@BASES
@METHODS
def test_a_new_adapter_changes_no_bit(method: str, quantization: Quantization | None) -> None:
    model = base(quantization)
    expected = answers(model)

    paths = attach(model, AdapterConfig.from_dict({"method": method, "targets": EVERYTHING}))

    assert len(paths) == 2 * 2 * 7 + 1 + 4
    assert mx.array_equal(answers(model), expected).item()
    train_at_random(model)
    assert largest(answers(model) - expected) > 0.1
    detach(model)
    assert mx.array_equal(answers(model), expected).item()
    assert not adapters(model)


def test_the_default_leaves_heads_and_embeddings_alone() -> None:
    paths = attach(random_csm_model(), AdapterConfig())

    assert len(paths) == 2 * 2 * 7 + 1
    assert paths == sorted(paths)
    assert {path.rpartition(".")[2] for path in paths} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "projection")
    }


@BASES
def test_lora_is_its_paper(quantization: Quantization | None) -> None:
    layer = adapters(adapted("lora", quantization, rank=4, alpha=6.0))["backbone.layers.1.mlp.down_proj"]
    x = np.random.default_rng(0).normal(size=(3, 2, 128)).astype(np.float32)

    weight = weight_of(layer.linear)
    weight = weight + 1.5 * (np.array(layer.lora_a, np.float64) @ np.array(layer.lora_b, np.float64)).T

    assert np.allclose(np.array(layer(mx.array(x))), x @ weight.T, atol=1e-4)


@BASES
def test_dora_is_its_paper(quantization: Quantization | None) -> None:
    layer = adapters(adapted("dora", quantization, rank=4, alpha=6.0))["backbone.layers.1.mlp.down_proj"]
    x = np.random.default_rng(0).normal(size=(3, 2, 128)).astype(np.float32)

    weight = weight_of(layer.linear)
    weight = weight + 1.5 * (np.array(layer.lora_a, np.float64) @ np.array(layer.lora_b, np.float64)).T
    weight = np.array(layer["magnitude"])[:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)

    assert np.allclose(np.array(layer(mx.array(x))), x @ weight.T, atol=1e-4)


def weight_of(linear: nn.Linear | nn.QuantizedLinear) -> np.ndarray:
    weight = dequantized(linear, mx.float32) if isinstance(linear, nn.QuantizedLinear) else linear.weight
    return np.array(weight, np.float64)


@BASES
@METHODS
def test_fused_equals_unfused(method: str, quantization: Quantization | None) -> None:
    model = adapted(method, quantization)
    expected = answers(model)

    fuse_model(model, dequantize=True)

    assert not adapters(model)
    assert largest(answers(model) - expected) < 1e-4


@METHODS
def test_a_quantized_base_is_quantized_again_as_it_was(method: str) -> None:
    model, floats = adapted(method, Quantization(recipe="mixed")), adapted(method, Quantization(recipe="mixed"))
    before = {p: (m.linear.bits, m.linear.group_size, m.linear["scales"].dtype) for p, m in adapters(model).items()}
    fuse_model(floats, dequantize=True)

    fuse_model(model)

    layers = dict(model.named_modules())
    assert {p: (layers[p].bits, layers[p].group_size, layers[p].scales.dtype) for p in before} == before
    assert {bits for bits, _, _ in before.values()} == {6, 8}
    for path in before:
        rounded, exact = dequantized(layers[path]), dict(floats.named_modules())[path].weight
        group = np.array(exact).reshape(exact.shape[0], -1, layers[path].group_size)
        step = np.ptp(group, axis=-1).max() / (2 ** layers[path].bits - 1)
        assert largest(rounded - exact) < step


def test_only_float_layers_can_be_fused() -> None:
    model = base()
    nn.quantize(model, 32, 8, class_predicate=lambda path, m: "backbone" in path and isinstance(m, nn.Linear))
    attach(model, AdapterConfig())
    train_at_random(model)
    expected = answers(model)

    fuse_model(model, only_float=True)

    assert {path.split(".")[0] for path in adapters(model)} == {"backbone"}
    assert largest(answers(model) - expected) < 1e-4


@BASES
@METHODS
def test_a_settled_adapter_speaks_as_before(method: str, quantization: Quantization | None) -> None:
    model = adapted(method, quantization)
    expected = answers(model)

    settle(model)

    assert largest(answers(model) - expected) < 1e-4
    assert not set(named(model.trainable_parameters())) & set(adapter_parameters(model))


@METHODS
def test_computation_is_in_the_type_of_the_base(method: str) -> None:
    model = random_csm_model()
    model.set_dtype(mx.bfloat16)
    exact = adapted(method)
    attach(model, AdapterConfig.from_dict({"method": method, "targets": EVERYTHING}))
    train_at_random(model)

    layer = adapters(model)["projection"]
    assert layer(mx.zeros((1, 64), mx.bfloat16)).dtype == mx.bfloat16
    assert layer.lora_a.dtype == mx.float32
    settle(model)
    assert layer.lora_a.dtype == mx.bfloat16
    error = answers(model) - answers(exact)
    assert np.abs(np.array(error)).mean() < 0.1 * np.abs(np.array(answers(exact))).mean()


# --- training ------------------------------------------------------------------------------------------------------


@BASES
@METHODS
def test_only_the_adapter_is_trained(method: str, quantization: Quantization | None) -> None:
    model = adapted(method, quantization)
    frozen = {n: p for n, p in named_parameters(model).items() if n not in adapter_parameters(model)}

    parameters = trainable(model, method)  # type: ignore[arg-type]

    assert set(parameters) == set(named(model.trainable_parameters()))
    assert set(parameters) == set(adapter_parameters(model))
    assert not set(parameters) & set(frozen)
    expected = ("lora_a", "lora_b", "magnitude") if method == "dora" else ("lora_a", "lora_b")
    assert {name.rpartition(".")[2] for name in parameters} == set(expected)

    loss, gradients = nn.value_and_grad(model, lambda: mx.square(answers(model)).mean())()
    flat = named(gradients)
    assert set(flat) == set(parameters)
    for gradient in flat.values():
        assert mx.isfinite(gradient).all().item()
    assert sum(largest(g) > 0 for g in flat.values()) > 0.9 * len(flat)

    # Not DoRA's lora_b: its gradient leaves out, on purpose, that through the rows' lengths.
    name = f"backbone.layers.0.mlp.down_proj.{'magnitude' if method == 'dora' else 'lora_b'}"
    layer, part = adapters(model)["backbone.layers.0.mlp.down_proj"], name.rpartition(".")[2]
    direction, step = flat[name] / mx.linalg.norm(flat[name]), 1e-2
    ends = []
    for sign in (1, -1):
        layer[part] = parameters[name] + sign * step * direction
        ends.append(mx.square(answers(model)).mean().item())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(mx.linalg.norm(flat[name]).item(), rel=2e-2)
    assert np.isfinite(loss.item())


def test_full_trains_every_weight_of_a_float_model() -> None:
    model = random_csm_model()
    model.freeze()
    assert set(trainable(model, "full")) == set(named_parameters(model))
    assert set(named(model.trainable_parameters())) == set(named_parameters(model))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="full fine-tuning needs float weights, this model is quantized; give its"):
        trainable(base(Q4), "full")
    with pytest.raises(ConfigError, match="full fine-tuning was asked for, but the model has an adapter"):
        trainable(adapted(), "full")
    for model in (base(), adapted("lora")):
        with pytest.raises(ConfigError, match="dora was asked for, but no such adapter is attached"):
            trainable(model, "dora")


def test_dropout_is_for_training_and_from_its_key() -> None:
    model = adapted(dropout=0.5)
    model.train()
    layer, x = adapters(model)["projection"], mx.ones((64, 64))

    def draw(seed: int) -> mx.array:
        lora.seed_dropout(model, mx.random.key(seed))
        return layer(x)

    assert mx.array_equal(draw(1), draw(1)).item()
    assert not mx.array_equal(draw(1), draw(2)).item()
    kept = layer._dropped(x)
    assert set(np.unique(np.array(kept))) == {0.0, 2.0}
    assert np.array(kept).mean() == pytest.approx(1, abs=0.1)
    other = adapters(model)["codebook0_head"]
    assert not mx.array_equal(other._dropped(x) > 0, kept > 0).item()
    model.eval()
    assert mx.array_equal(layer._dropped(x), x).item()


def test_a_seed_gives_the_same_start() -> None:
    def start(seed: int) -> dict[str, mx.array]:
        model = random_csm_model()
        attach(model, AdapterConfig(), seed=seed)
        return adapter_parameters(model)

    one, same, other = start(1), start(1), start(2)
    assert all(mx.array_equal(w, same[n]).item() for n, w in one.items())
    assert not any(mx.array_equal(w, other[n]).item() for n, w in one.items() if n.endswith("lora_a"))
    first, second = (one[f"backbone.layers.{i}.self_attn.q_proj.lora_a"] for i in (0, 1))
    assert not mx.array_equal(first, second).item()


# --- configuration -------------------------------------------------------------------------------------------------


def test_a_config_survives_json() -> None:
    config = AdapterConfig(method="dora", rank=4, alpha=2.0, dropout=0.1, targets=("projection",))
    assert AdapterConfig.from_dict(config.to_dict()) == config
    assert config.scale == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0, expected 1 or more"),
        ({"rank": 8.0}, "rank is float 8.0, expected int"),
        ({"alpha": 0.0}, "alpha is 0.0, expected a number above 0"),
        ({"alpha": float("nan")}, "alpha is nan, expected"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0"),
        ({"targets": []}, "targets is empty, expected patterns such as backbone"),
        ({"targets": "projection"}, "targets is 'projection', expected a list"),
        ({"method": "ia3"}, "method is 'ia3', expected one of 'lora', 'dora'"),
        ({"r": 8}, "unknown field 'r'"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_a_wrong_config_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig.from_dict(changes)


def test_wrong_targets_are_told_what_there_is() -> None:
    model = random_csm_model()
    listed = r"'backbone\.\*\.qproj' names no layer of this model; name some of audio_head\.\*, .*q_proj.*projection"
    with pytest.raises(ConfigError, match=listed):
        attach(model, AdapterConfig(targets=("projection", "backbone.*.qproj")))
    with pytest.raises(ConfigError, match=r"rank is 33, but .* is \d+ by \d+; give at most 32"):
        attach(model, AdapterConfig(rank=33))
    assert not adapters(model)
    attach(model, AdapterConfig())
    with pytest.raises(ConfigError, match="the model has an adapter already; fuse or detach it first"):
        attach(model, AdapterConfig())


@METHODS
def test_shapes_are_known_before(method: str) -> None:
    config = AdapterConfig.from_dict({"method": method, "rank": 3})
    model = base(Q4)
    before = lora.adapter_shapes(model, config)
    attach(model, config)
    assert before == {name: p.shape for name, p in adapter_parameters(model).items()}
    assert before == lora.adapter_shapes(model, config)
