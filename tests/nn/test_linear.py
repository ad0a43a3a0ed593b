"""Layers read as one product: the same numbers, the same names, no second copy, and never yesterday's weights."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from support.models import greedy, largest, llama, random_csm, random_csm_model

from csm_mlx.nn.layout import Factor
from csm_mlx.nn.linear import Product
from csm_mlx.nn.transformer import Transformer
from csm_mlx.quantize import Quantization, named_parameters, quantize_model


class Owner(nn.Module):
    def __init__(self, *rows: int):
        super().__init__()
        for name, n in zip("abc", rows, strict=True):
            self[name] = nn.Linear(64, n, bias=False)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_one_product_says_what_the_layers_say(bits: int | None) -> None:
    owner, x = Owner(32, 8, 8), mx.random.normal((3, 64))
    if bits:
        nn.quantize(owner, 64, bits)
    product, plus = Product("a", "b", "c"), mx.random.normal((3, 48))
    arrays = {name: mx.array(array) for name, array in named_parameters(owner).items()}
    mx.eval(arrays)
    expected = mx.concatenate([owner[name](x) for name in "abc"], axis=-1)
    for _ in range(2):
        assert largest(product(owner, x) - expected) < 1e-5
        assert largest(product(owner, x, plus) - plus - expected) < 1e-5
        product.prepare(owner)
    assert all(mx.array_equal(array, arrays[name]) for name, array in named_parameters(owner).items())
    assert largest(mx.concatenate([owner[name](x) for name in "abc"], axis=-1) - expected) < 1e-5
    head = Product("a", n_rows=30)
    head.prepare(owner)
    assert largest(head(owner, x) - expected[:, :30]) < 1e-5
    assert largest(head(owner, x, plus[:, :30]) - plus[:, :30] - expected[:, :30]) < 1e-5


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("n_large", [1, 10**9])
def test_parts_are_what_the_layers_say(bits: int | None, n_large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("layout", "linear"):  # as layers of true width lie, and as small ones do
        monkeypatch.setattr(f"csm_mlx.nn.{module}.LARGE_WEIGHT", n_large)
    owner, product = Owner(32, 32, 32), Product("a", "b", "c", in_parts=True)
    if bits:
        nn.quantize(owner, 64, bits)
    mx.eval(owner.parameters())
    weights = {name: mx.array(owner[name]["weight"]) for name in "abc"}
    mx.eval(weights)
    for prepared in (False, True, True):
        for n_rows in (1, 2, 3, 4, 5, 8, 9, 25):
            x = mx.random.normal((n_rows, 64))
            expected = [owner[name](x) for name in "abc"]
            for without_gaps in (False, True):
                parts = product.parts(owner, x, without_gaps=without_gaps)
                assert [part.shape for part in parts] == 3 * [(n_rows, 32)]
                assert max(largest(a - b) for a, b in zip(parts, expected, strict=True)) < 1e-5
            assert largest(product(owner, x) - mx.concatenate(expected, axis=-1)) < 1e-5, prepared
        product.prepare(owner)
    assert all(mx.array_equal(owner[name]["weight"], weights[name]) for name in "abc")
    owner["b"].update({"weight": mx.zeros_like(owner["b"]["weight"])})
    x = mx.random.normal((3, 64))
    assert largest(product.parts(owner, x)[1] - owner["b"](x)) < 1e-5


@pytest.mark.usefixtures("order")
def test_what_changed_since_is_noticed() -> None:
    owner, x = Owner(32, 8, 8), mx.random.normal((3, 64))
    product = Product("a", "b", "c")
    changes = [
        lambda: owner["b"].update({"weight": mx.zeros((8, 64))}),
        lambda: owner.update({"c": nn.Linear(64, 8, bias=False)}),
        lambda: owner.update_modules({"a": nn.Linear(64, 32, bias=False)}),
        lambda: nn.quantize(owner, 64, 8),
        lambda: owner.set_dtype(mx.bfloat16),
    ]
    for change in changes:
        product.prepare(owner)
        change()
        expected = mx.concatenate([owner[name](x) for name in "abc"], axis=-1)
        assert largest(product(owner, x) - expected) < 1e-5


@pytest.mark.usefixtures("order")
def test_layers_of_two_kinds_stay_apart() -> None:
    owner, x = Owner(32, 8, 8), mx.random.normal((3, 64))
    owner["b"] = nn.QuantizedLinear.from_linear(owner["b"], 64, 4)
    product = Product("a", "b", "c")
    product.prepare(owner)
    assert type(owner["b"]) is nn.QuantizedLinear
    assert largest(product(owner, x) - mx.concatenate([owner[name](x) for name in "abc"], axis=-1)) == 0


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("recipe", [None, "q4", "mixed"])
def test_preparing_a_model_takes_no_memory_and_no_name(recipe: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm_mlx.models.csm.CODE_TABLE_BYTES", 0)
    limit = mx.set_cache_limit(0)  # else an array may be given a larger buffer that another test left
    model = random_csm_model()
    if recipe:
        quantize_model(model, Quantization(recipe=recipe))
    mx.eval(model.parameters())
    before = {name: mx.array(p) for name, p in named_parameters(model).items()}
    mx.eval(before)
    n_bytes = mx.get_active_memory()
    model.prepare()
    n_prepared = mx.get_active_memory()
    mx.set_cache_limit(limit)
    assert n_prepared <= n_bytes * 1.01
    after = named_parameters(model)
    assert list(after) == list(before)
    assert all(mx.array_equal(after[name], before[name]) for name in before)


@pytest.mark.usefixtures("order")
def test_a_session_speaks_with_the_weights_of_now() -> None:
    csm, other = random_csm(), random_csm(seed=5)
    session = csm.session(sampling=greedy(csm))
    list(session.speak("Hello", max_seconds=0.4))
    csm.model.update(other.model.parameters())
    speech, expected = csm.session(sampling=greedy(csm)), other.session(sampling=greedy(other))
    first, second = speech.speak("Hello", max_seconds=0.8), expected.speak("Hello", max_seconds=0.8)
    for utterance in (first, second):
        list(utterance)
    assert first.codes.tolist() == second.codes.tolist()


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("n_rows", [1, 3, 20, 40])
def test_gradients_pass_through_a_large_weight(n_rows: int) -> None:
    weight, x = mx.random.normal((1536, 1024)), mx.random.normal((n_rows, 1024))
    times = Factor(weight)
    gradient = mx.grad(lambda x: mx.square(times(x)).sum())(x)
    expected = mx.grad(lambda x: mx.square(x @ weight.T).sum())(x)
    assert largest(gradient - expected) < 1e-5 * largest(expected)


@pytest.mark.usefixtures("order")
def test_gradients_reach_what_was_prepared() -> None:
    transformer, x = Transformer(llama(64)), mx.random.normal((1, 6, 64))

    def flat(tree: Any) -> dict[str, mx.array]:
        return {name: leaf for name, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)}

    def loss(model: Transformer) -> mx.array:
        return model(x, model.make_state(1, mx.float32, 6))[0].square().sum()

    expected = flat(nn.value_and_grad(transformer, loss)(transformer)[1])
    transformer.prepare()
    found = flat(nn.value_and_grad(transformer, loss)(transformer)[1])
    assert list(found) == list(expected)
    assert max(largest(found[name] - expected[name]) for name in found) < 1e-3
