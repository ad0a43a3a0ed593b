"""The ring between making and playing; and, where PulseAudio is there, a virtual loudspeaker that is listened to."""

import threading
import time

import numpy as np
import pytest
import soundfile
from csm_mlx_app.sound.ring import Ring
from support.pulse import needs_pulse, pulse


def test_what_goes_into_the_ring_comes_out_once_and_in_order():
    rng = np.random.default_rng(0)
    sound = rng.normal(size=10_000).astype(np.float32)
    ring, heard, rest = Ring(701), [], sound
    while len(rest) or len(ring):
        rest = rest[ring.put(rest[: rng.integers(0, 900)]) :]
        out = np.full(rng.integers(1, 300), np.nan, np.float32)
        n = min(len(ring), len(out))
        ring.take(out)
        heard.append(out[:n])
        assert not out[n:].any(), "a ring that has run dry plays silence"
    assert np.array_equal(np.concatenate(heard), sound)


def test_silence_is_a_gap_only_where_more_was_to_come():
    ring, out = Ring(100), np.zeros(30, np.float32)
    ring.take(out)
    assert ring.n_missing == 0, "nothing has been said yet"
    ring.put(np.ones(20, np.float32))
    ring.take(out)
    assert ring.n_missing == 10
    ring.put(np.ones(20, np.float32))
    ring.paused = True
    ring.take(out)
    ring.take(out)
    assert ring.n_missing == 10, "between sentences there is nothing to miss"
    ring.put(np.ones(20, np.float32))
    ring.take(out)
    assert ring.n_missing == 20


def test_two_threads_need_no_lock():
    sound = np.arange(50_000, dtype=np.float32)
    ring, heard = Ring(997), []

    def listen() -> None:
        left = len(sound)
        while left:
            out = np.zeros(min(len(ring), 256), np.float32)
            ring.take(out)
            heard.append(out)
            left -= len(out)
            time.sleep(0)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    rest = sound
    while len(rest):
        rest = rest[ring.put(rest) :]
        time.sleep(0)
    listener.join(timeout=30)
    assert np.array_equal(np.concatenate(heard), sound)


@needs_pulse
def test_a_loudspeaker_plays_what_the_file_holds(run, tmp_path):
    with pulse(tmp_path) as server:
        result = run("say", "Hello there, how are you today?", "--play", "-o", "a.wav", env=server.env)
        assert result.code == 0, result.err
        assert "-> a.wav and the loudspeaker" in result.err
        time.sleep(0.5)
        heard = server.heard()
    written, _ = soundfile.read(tmp_path / "a.wav")
    # On a busy machine there are gaps; but for them, all that was written was heard, and nothing else.
    played, held = _without_gaps(heard), _without_gaps(written)
    assert len(played) == pytest.approx(len(held), abs=240)
    n = min(len(played), len(held))
    likeness = played[:n] @ held[:n] / (np.linalg.norm(played[:n]) * np.linalg.norm(held[:n]))
    assert likeness > 0.95


def _without_gaps(sound: np.ndarray, at_least: int = 16) -> np.ndarray:
    """Runs of exact zeros cut out, which speech has none of."""
    is_zero = np.concatenate([[False], sound == 0, [False]])
    starts, ends = np.flatnonzero(np.diff(is_zero.astype(int)) == 1), np.flatnonzero(np.diff(is_zero.astype(int)) == -1)
    keep = np.ones(len(sound), bool)
    for start, end in zip(starts, ends, strict=True):
        keep[start:end] = end - start < at_least
    return sound[keep]
