"""Laws of full duplex: what a session says depends on what it heard, in time, and on nothing else."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from support.memory import arrays_of_others
from support.models import largest, n_bytes
from support.moshi import greedy_session, moshi_config, random_frames, random_moshi, stt_config

from csm_mlx.config import MoshiConfig
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.frames import DelayLine
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import named_parameters

CONFIGS = {"moshi": moshi_config(), "stt": stt_config()}
N_FRAMES = 32
"""Past three windows of nine."""


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> MoshiModel:
    return random_moshi(CONFIGS[request.param])


def run(session: TokenSession, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text (T, B), codes (T - late, B, n_generated) and hidden states (T, B, dim)."""
    text, codes, hidden = [], [], []
    for frame in frames:
        step = session.step(frame)
        text.append(np.array(step.text))
        codes += [] if step.codes is None else [np.array(step.codes)]
        hidden.append(np.array(session.state["hidden"]))
    return np.stack(text), np.array(codes), np.stack(hidden)


def late(config: MoshiConfig) -> int:
    return max(config.delays[: 1 + config.n_generated])


def test_a_session_past_three_windows_equals_offline(model: MoshiModel) -> None:
    c = model.config
    session = greedy_session(model)
    first = np.array(session.state["said"][-1])
    frames = random_frames(c, N_FRAMES)
    said = [first]
    hidden = []
    for frame in frames:
        session.step(frame)
        said.append(np.array(session.state["said"][-1]))
        hidden.append(np.array(session.state["hidden"][0]))
    n_said = 1 + c.n_generated
    # The streams as one frame belongs together, delayed as a whole: nothing of the session's own bookkeeping.
    heard = DelayLine(c.delays[n_said:]).delayed(frames[:, 0], c.initial_tokens[n_said:])[:N_FRAMES]
    spoken = np.concatenate(said)[:N_FRAMES].copy()
    for k, delay in enumerate(c.delays[:n_said]):
        spoken[:delay, k] = c.initial_tokens[k]
    tokens = np.concatenate([spoken, heard], axis=1)
    tokens = np.concatenate([np.array([c.initial_tokens]), tokens]).astype(np.int32)
    offline, _ = model(mx.array(tokens[None]), model.make_state(1, chunk_frames=len(tokens)))
    assert largest(offline[0, 1:] - mx.array(np.stack(hidden))) < 1e-4
    text = np.array(mx.argmax(model.text_logits(offline[0]), axis=-1))
    np.testing.assert_array_equal(text, np.concatenate(said)[:, 0])
    assert len(set(text.tolist())) > 5


def test_a_ring_that_grows_says_what_a_whole_one_says(model: MoshiModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By four slots at a time, so that it grows twice before it wraps, and a layer later than the other."""
    frames = random_frames(model.config, N_FRAMES, batch=2)
    whole = run(greedy_session(model, batch=2), frames)
    monkeypatch.setattr("csm_mlx.nn.cache.GROWTH", 4)
    session, slots = greedy_session(model, batch=2), []
    for frame, text, hidden in zip(frames, whole[0], whole[2], strict=True):
        kept = session.state
        step = session.step(frame)
        np.testing.assert_array_equal(np.array(step.text), text)
        np.testing.assert_allclose(np.array(session.state["hidden"]), hidden, atol=1e-4)
        slots.append([keys.shape[2] for keys in session.state["cache"]["keys"]])
        session.state = kept  # a snapshot of a ring that has since grown, or not
        np.testing.assert_array_equal(np.array(session.step(frame).text), text)
    assert slots[0] == [4, 4]
    assert [4, 8] in slots, "both layers grow in the same step"
    assert [8, 8] in slots
    assert slots[-1] == [9, 9]


def test_a_ring_is_as_large_as_the_conversation() -> None:
    model = random_moshi(moshi_config(temporal=replace(moshi_config().temporal, window=1000)))
    session, sizes = greedy_session(model), []
    for frame in random_frames(model.config, 300):
        session.step(frame)
        sizes.append(n_bytes(session.state["cache"]))
    assert sizes[0] == sizes[100] == sizes[-1] / 2


def test_offline_equals_attention_with_a_window(model: MoshiModel) -> None:
    """A state `window` frames after another forgot it: only so many positions are seen, itself included."""
    c, window = model.config, model.config.temporal.window
    assert window is not None
    one_layer = MoshiModel(replace(c, temporal=replace(c.temporal, n_layers=1)))
    weights = named_parameters(model).items()
    one_layer.load_weights([(name, weight) for name, weight in weights if not name.startswith("temporal.layers.1.")])
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, c.codebook_size, (1, 3 * window, 1 + c.n_codebooks)).astype(np.int32)
    other = tokens.copy()
    other[0, 5] = (other[0, 5] + 1) % c.codebook_size
    a, b = (
        np.array(one_layer(mx.array(t), one_layer.make_state(1, chunk_frames=3 * window))[0]) for t in (tokens, other)
    )
    differs = np.abs(a - b).max(axis=(0, 2)) > 0
    assert differs.tolist() == [5 <= i < 5 + window for i in range(3 * window)]


def test_a_frame_changes_the_step_it_is_heard_in(model: MoshiModel) -> None:
    c, k = model.config, 14
    frames = random_frames(c, 24)
    changed = frames.copy()
    changed[k] = (changed[k] + 1) % c.codebook_size
    (_, codes, hidden), (_, changed_codes, changed_hidden) = (run(greedy_session(model), f) for f in (frames, changed))
    np.testing.assert_array_equal(hidden[:k], changed_hidden[:k])
    assert np.abs(hidden[k] - changed_hidden[k]).max() > 1e-3
    if c.n_generated:
        # The first codes that it changes come with the acoustic ones that are late, in the same step.
        first = k + 1 - late(c)
        np.testing.assert_array_equal(codes[:first], changed_codes[:first])


def test_a_late_codebook_is_heard_later(model: MoshiModel) -> None:
    c, k = model.config, 14
    heard_delays = c.delays[1 + c.n_generated :]
    frames = random_frames(c, 24)
    changed = frames.copy()
    changed[k, :, -1] = (changed[k, :, -1] + 1) % c.codebook_size
    (_, _, hidden), (_, _, changed_hidden) = (run(greedy_session(model), f) for f in (frames, changed))
    first = k + heard_delays[-1]
    np.testing.assert_array_equal(hidden[:first], changed_hidden[:first])
    assert np.abs(hidden[first] - changed_hidden[first]).max() > 1e-3


def test_codes_come_as_soon_as_their_delays_allow(model: MoshiModel) -> None:
    c = model.config
    session = greedy_session(model)
    steps = [session.step(frame) for frame in random_frames(c, 6)]
    if not c.n_generated:
        assert all(step.codes is None for step in steps)
        return
    said_none = [step.codes is None for step in steps]
    assert said_none == [i + 1 < late(c) for i in range(6)]
    codes = np.concatenate([np.array(s.codes) for s in steps if s.codes is not None])
    assert codes.min() >= 0
    assert codes.max() < c.codebook_size


def test_what_is_said_is_put_together_again(model: MoshiModel) -> None:
    """The codes that come out are those that were said, undelayed."""
    c = model.config
    if not c.n_generated:
        pytest.skip("says nothing")
    session = greedy_session(model)
    said, codes = [np.array(session.state["said"][-1][0])], []
    for frame in random_frames(c, 20):
        step = session.step(frame)
        said.append(np.array(session.state["said"][-1][0]))
        codes += [] if step.codes is None else [np.array(step.codes[0])]
    line = DelayLine(c.delays[1 : 1 + c.n_generated])
    np.testing.assert_array_equal(np.stack(codes), line.undelayed(np.stack(said)[:, 1:]))


def test_interleaved_sessions_equal_separate_ones(model: MoshiModel) -> None:
    a, b = random_frames(model.config, 20, seed=1), random_frames(model.config, 20, seed=2)
    apart = [run(TokenSession(model, seed=i), f) for i, f in enumerate((a, b))]
    sessions = [TokenSession(model, seed=i) for i in range(2)]
    text: list[list[int]] = [[], []]
    for pair in zip(a, b, strict=True):
        for i, frame in enumerate(pair):
            text[i] += np.array(sessions[i].step(frame).text).tolist()
    assert [t[:, 0].tolist() for t, _, _ in apart] == text
    for (_, _, hidden), session in zip(apart, sessions, strict=True):
        np.testing.assert_array_equal(hidden[-1], np.array(session.state["hidden"]))


def test_a_batch_of_two_equals_two_singles(model: MoshiModel) -> None:
    frames = random_frames(model.config, 20, batch=2)
    text, codes, hidden = run(greedy_session(model, batch=2), frames)
    for i in range(2):
        one_text, one_codes, one_hidden = run(greedy_session(model), frames[:, i : i + 1])
        np.testing.assert_array_equal(text[:, i], one_text[:, 0])
        if model.config.n_generated:
            np.testing.assert_array_equal(codes[:, i], one_codes[:, 0])
        np.testing.assert_allclose(hidden[:, i], one_hidden[:, 0], atol=1e-4)


def test_the_same_seed_says_the_same_and_another_does_not(model: MoshiModel) -> None:
    frames = random_frames(model.config, 15)
    one, same, other = (run(TokenSession(model, seed=seed), frames)[0].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_an_old_state_goes_back_to_it(model: MoshiModel) -> None:
    frames = random_frames(model.config, 20)
    session = TokenSession(model)
    run(session, frames[:8])
    kept = session.state
    there, again = run(session, frames[8:]), None
    session.state = kept
    again = run(session, frames[8:])
    for before, after in zip(there, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_memory_does_not_grow(model: MoshiModel) -> None:
    session, frames = TokenSession(model), random_frames(model.config, 120)
    run(session, frames)
    mx.eval(session.state["cache"], session.state["said"], session.state["key"])
    size, held = n_bytes(session.state), arrays_of_others()
    run(session, frames)
    mx.eval(session.state["cache"], session.state["said"], session.state["key"])
    assert n_bytes(session.state) == size
    assert mx.get_active_memory() <= held + 100_000


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_steps(model: MoshiModel) -> None:
    session, frames = TokenSession(model), random_frames(model.config, 100)
    held = []
    for _ in range(100):
        for frame in frames:
            session.step(frame)
        mx.eval(session.state["cache"], session.state["said"], session.state["key"])
        held.append(mx.get_active_memory())
    assert max(held[1:]) - held[1] < 100_000


def test_a_condition_changes_what_is_said() -> None:
    model = random_moshi(moshi_config(conditions={"description": ["bad", "good"], "pace": ["slow", "fast"]}))
    frames = random_frames(model.config, 12)
    wanted = [{"description": d, "pace": p} for d in ("bad", "good") for p in ("slow", "fast")]
    hidden = [run(greedy_session(model, conditions=values), frames)[2] for values in wanted]
    for i, one in enumerate(hidden):
        for other in hidden[i + 1 :]:
            assert (np.abs(one - other).max(axis=(1, 2)) > 1e-3).all()
    for values in ({}, {"description": "bad"}, {"description": "bad", "pace": "medium"}):
        with pytest.raises(ConfigError, match="expected one value each of description: bad, good; pace: slow, fast"):
            greedy_session(model, conditions=values)
    with pytest.raises(ConfigError, match="expected one value each of none"):
        greedy_session(random_moshi(), conditions={"pace": "slow"})


def test_only_frames_are_heard(model: MoshiModel) -> None:
    c = model.config
    session = TokenSession(model)
    with pytest.raises(AudioError, match=rf"shape \({c.n_heard + 1},\).*expected \(1, {c.n_heard}\) integers"):
        session.step(np.zeros(c.n_heard + 1, np.int64))
    with pytest.raises(AudioError, match="float"):
        session.step(np.zeros(c.n_heard))
    with pytest.raises(AudioError, match="float32"):
        session.step(mx.zeros((1, c.n_heard)))
    with pytest.raises(AudioError, match="codes lie in -1"):
        session.step(np.full(c.n_heard, -1))
    with pytest.raises(AudioError, match="codes lie in"):
        session.step(np.full(c.n_heard, c.codebook_size + 1))
    session.step(np.full(c.n_heard, c.codebook_size))
    session.step(mx.zeros((c.n_heard,), mx.uint32))
