"""Batches: each row says what it would say alone, whatever the others do."""

from collections.abc import Generator, Iterator, Sequence
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.memory import arrays_of_others
from support.models import csm_config, greedy, largest, llama, n_bytes, random_csm, random_csm_model, that_always_says

import csm_mlx
from csm_mlx.benchmark import BatchLoop, count_nodes
from csm_mlx.config import SamplingConfig
from csm_mlx.errors import AudioError, ConfigError, ContextError, CsmError, GenerationError
from csm_mlx.frames import Turn
from csm_mlx.generate.batch import Lanes, Utterance
from csm_mlx.generate.context import GROWTH
from csm_mlx.generate.session import Csm
from csm_mlx.nn import cache
from csm_mlx.nn.transformer import Transformer
from csm_mlx.quantize import Quantization, quantize_model
from csm_mlx.sampling import Sampler

TEXTS = ("Hello there.", "One, two, three, four, five.", "Yes.", "Good night.")


@pytest.fixture(scope="module")
def tiny() -> Csm:
    return csm_mlx.load()


@pytest.fixture(scope="module")
def reference(tiny: Csm) -> Turn:
    text = "This is my voice."
    return Turn(speaker=0, text=text, pcm=np.concatenate(list(tiny.session(seed=4).speak(text))))


@pytest.fixture(scope="module")
def csm() -> Csm:
    return random_csm()


def alone(
    csm: Csm,
    texts: Sequence[str],
    speaker: int = 0,
    reference: Sequence[Turn] = (),
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    max_seconds: float | None = None,
) -> list[Utterance]:
    """What `generate_batch` promises, one after the other."""
    said = []
    for index, text in enumerate(texts):
        session, pieces, error = csm.session(seed=seed, sampling=sampling), [np.zeros(0, np.float32)], None
        for turn in reference:
            session.add(turn, reference=True)
        try:
            speech = session.speak(text, speaker, max_seconds=max_seconds)
            pieces.extend(speech)
        except CsmError as raised:
            said.append(Utterance(index, text, pieces[0], np.zeros((0, 0), np.int32), "closed", raised))
            continue
        assert speech.stats.stop is not None
        said.append(Utterance(index, text, np.concatenate(pieces), speech.codes, speech.stats.stop, error))
    return said


def assert_same(batch: Iterator[Utterance], singles: Sequence[Utterance]) -> None:
    got = sorted(batch, key=lambda utterance: utterance.index)
    assert [row.index for row in got] == [single.index for single in singles]
    for row, single in zip(got, singles, strict=True):
        assert (row.text, row.stop, str(row.error)) == (single.text, single.stop, str(single.error))
        assert row.codes.tolist() == single.codes.tolist()
        assert row.codes.dtype == np.int32
        assert row.pcm.shape == single.pcm.shape
        assert row.pcm.dtype == np.float32
        assert not len(row.pcm) or np.abs(row.pcm - single.pcm).max() < 1e-5


@pytest.mark.parametrize("is_greedy", [True, False], ids=["greedy", "sampled"])
def test_rows_say_what_they_would_alone(tiny: Csm, reference: Turn, is_greedy: bool) -> None:
    sampling = greedy(tiny) if is_greedy else SamplingConfig(temperature=0.8, top_k=20)
    singles = alone(tiny, TEXTS, reference=[reference], seed=7, sampling=sampling)
    assert {single.stop for single in singles} == {"end"}
    assert len({len(single.codes) for single in singles}) > 2
    for batch_size in (1, 2, 8):
        batch = tiny.generate_batch(TEXTS, batch_size=batch_size, reference=reference, seed=7, sampling=sampling)
        assert_same(batch, singles)


def test_the_cache_of_a_batch_grows_and_moves(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["short", "a text that is longer", "x" * 70, "then"]
    singles = alone(csm, texts, speaker=1, seed=3, max_seconds=1)
    monkeypatch.setattr("csm_mlx.generate.batch.GROWTH", 4)
    assert_same(csm.generate_batch(texts, batch_size=2, speaker=1, seed=3, max_seconds=1), singles)


def test_who_leaves_takes_the_padding_along(csm: Csm) -> None:
    lanes, starts = Lanes(csm.model, Sampler(greedy(csm))), []
    for text in ("a text that is longer", "short"):
        starts.append(csm.session().speak(text).prefilled())
    lanes.build([], starts)
    mx.eval(lanes.evaluated())
    lanes.build([1], [])
    assert lanes._state is not None
    n_rows = len("[0]short") + 2 + 1  # begin and end tokens, and the frame
    assert (lanes._state["offset"], lanes._state["padding"]) == (n_rows, (0,))
    assert cache.capacity(lanes._state) == n_rows + GROWTH


@pytest.mark.parametrize("group_size", [32, 64])
def test_rows_of_a_quantized_model(group_size: int) -> None:
    csm = random_csm(csm_config(depth=llama(64)))
    quantize_model(csm.model, Quantization(recipe="q4", group_size=group_size))
    assert_same(csm.generate_batch(TEXTS, batch_size=3, max_seconds=0.8), alone(csm, TEXTS, max_seconds=0.8))


def test_every_guard_is_that_of_speech(csm: Csm) -> None:
    long = "A very long text. " * 20
    stuck = that_always_says([7, 3, 5, 9])
    assert_same(
        stuck.generate_batch([long, "Hi"], sampling=greedy(stuck)), alone(stuck, [long, "Hi"], sampling=greedy(stuck))
    )
    silent = random_csm()
    final = silent.codec.decoder.final_conv
    final.weight, final.bias = mx.zeros_like(final.weight), mx.zeros_like(final.bias)
    singles = alone(silent, [long, "Hi"])
    assert [single.stop for single in singles] == ["silence", "silence"]
    assert_same(silent.generate_batch([long, "Hi"]), singles)
    texts = ["Hi", "Hello there"]
    assert {single.stop for single in alone(csm, texts, max_seconds=0.08)} == {"length"}
    assert_same(csm.generate_batch(texts, max_seconds=0.08), alone(csm, texts, max_seconds=0.08))


def test_a_first_frame_is_retried_as_often_as_alone() -> None:
    csm = that_always_says([0, 5], strength=5.5)  # four frames in five are end frames
    sampling, errors = SamplingConfig(temperature=1.0, top_k=0), 0
    for seed in range(12):
        singles = alone(csm, ["Hi", "Hello"], seed=seed, sampling=sampling, max_seconds=0.4)
        assert_same(csm.generate_batch(["Hi", "Hello"], seed=seed, sampling=sampling, max_seconds=0.4), singles)
        errors += sum(single.error is not None for single in singles)
    assert 0 < errors < 24


def test_a_text_that_cannot_be_spoken_stops_no_other(csm: Csm) -> None:
    texts = ["  ", "First", "x" * 600, "Second", ""]
    batch = list(csm.generate_batch(texts, batch_size=2, max_seconds=0.4))
    errors = {row.index: type(row.error) for row in batch if row.error is not None}
    assert errors == {0: ConfigError, 2: ContextError, 4: ConfigError}
    assert all(row.pcm.shape == (0,) and row.codes.shape == (0, 4) for row in batch if row.error is not None)
    assert sorted(row.index for row in batch if len(row.codes) == 5) == [1, 3]
    mute = that_always_says([0, 0], strength=1000.0)
    (row,) = mute.generate_batch(["Hi"])
    assert isinstance(row.error, GenerationError)
    assert list(csm.generate_batch([])) == []


def test_texts_are_taken_as_rows_get_free(csm: Csm) -> None:
    taken = []

    def endless() -> Iterator[str]:
        for i in count():
            taken.append(i)
            yield f"Text {i}"

    batch = csm.generate_batch(endless(), batch_size=3, max_seconds=0.4)
    assert not taken
    seen = []
    for n_yielded, row in enumerate(batch, 1):
        seen.append(row.index)
        assert len(taken) <= n_yielded + 2 * 3
        if n_yielded == 7:
            break
    assert isinstance(batch, Generator)
    batch.close()
    n_taken = len(taken)
    assert len(set(seen)) == 7
    assert len(csm.session().speak("Hi").codes) == 0  # the model serves others
    assert len(taken) == n_taken


def test_a_long_list_leaks_nothing(csm: Csm) -> None:
    texts = (f"Text number {i}" for i in range(40))
    others = arrays_of_others()
    held = [mx.get_active_memory() - others for _ in csm.generate_batch(texts, batch_size=4, max_seconds=0.2)]
    assert len(held) == 40
    context = csm.session()
    list(context.speak("Text number 0", max_seconds=0.2))
    one = n_bytes(context.snapshot().context.state)
    assert one > 10_000
    assert max(held[20:]) < max(held[:20]) + 5 * one  # were one kept of each text, it would be 20


def test_a_batch_is_few_more_operations_than_one_row() -> None:
    model = random_csm_model(csm_config(backbone=llama(64, n_layers=8), n_codebooks=16))
    nodes = {}
    with mx.stream(mx.cpu):
        for n_rows in (1, 2, 8):
            loop = BatchLoop(model, SamplingConfig(temperature=0.9, top_k=20), n_rows)
            loop.run()
            nodes[n_rows] = count_nodes(*loop.build())
            loop.finish()
            assert count_nodes(*loop.build()) == nodes[n_rows]
    assert nodes[8] == nodes[2]
    assert nodes[8] < 1.5 * nodes[1]  # a single row has short cuts: no mask, no rows to normalize one by one


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_rows_of_unlike_length_in_one_cache(dtype: mx.Dtype) -> None:
    mx.random.seed(2)
    transformer = Transformer(llama(32))
    transformer.set_dtype(dtype)
    prompts, x = [9, 3, 14], mx.random.normal((3, 20, 32)).astype(dtype)
    singles, whole = [], []
    for row, n in enumerate(prompts):
        singles.append(transformer(x[row : row + 1, :n], transformer.make_state(1, dtype, 40))[1])
        y, _ = transformer(x[row : row + 1], transformer.make_state(1, dtype, 40))
        whole.append(y[0])
    tolerance = 1e-5 if dtype == mx.float32 else 0.1
    state = cache.aligned(singles, 2)
    assert (state["offset"], state["padding"], cache.capacity(state)) == (14, (5, 11, 0), 16)
    for i in range(2):
        y, state = transformer(mx.stack([x[row, n + i] for row, n in enumerate(prompts)])[:, None], state)
        for row, n in enumerate(prompts):
            assert largest((y[row, 0] - whole[row][n + i]).astype(mx.float32)) < tolerance
    state = cache.aligned([cache.chosen(state, [1, 0])], 2)  # the longest has left
    assert (state["offset"], state["padding"], cache.capacity(state)) == (11, (6, 0), 13)
    y, state = transformer(mx.stack([x[1, 5], x[0, 11]])[:, None], state)
    for row, expected in enumerate((whole[1][5], whole[0][11])):
        assert largest((y[row, 0] - expected).astype(mx.float32)) < tolerance
    with pytest.raises(ValueError, match="one position at a time, not 2"):
        transformer(x[:2, :2], state)


def test_wrong_arguments_are_named_at_once(csm: Csm) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size is 0, expected a whole number from 1"),
        ({"seed": -1}, "seed is -1"),
        ({"speaker": -1}, "speaker is -1"),
        ({"max_seconds": 0}, "max_seconds is 0"),
    ]
    for given, message in wrong:
        with pytest.raises(ConfigError, match=message):
            csm.generate_batch(["Hi"], **given)
    with pytest.raises(AudioError, match=r"expected \(n_frames, 4\) integers"):
        csm.generate_batch(["Hi"], reference=Turn(speaker=0, text="x", codes=np.zeros((3, 2), np.int32)))
