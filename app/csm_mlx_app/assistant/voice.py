"""From windows of the microphone to a user's speech: when it began, when it truly ended, how loud it was."""

from dataclasses import dataclass, field
from statistics import median

from csm_mlx_app.assistant.events import Window
from csm_mlx_app.assistant.turn_config import TurnConfig

WINDOW_S = 0.032
"""512 samples at 16 kHz: what the voice detector takes at a time."""

_ENTER, _EXIT = 0.5, 0.35
"""Probabilities of speech at which a voice begins and is over."""

_TRAIL_DB = 30.0
"""So far below a stretch's loudest window, what the detector still calls voice is its own hesitation."""
_TRAIL_S = 0.096
"""How long the detector hesitates at most."""

_LONG_PAUSE_S = 0.096
"""After so much silence, one window of voice does not yet mean that the speech goes on."""

_CLEARLY_DB = 6.0
"""How far above the background a voice lies."""
_FALL, _RISE = 0.3, 0.02
"""Part of the way to a new level that the estimated background goes with each window, when quieter and when louder."""
SILENCE_DB = -100.0


@dataclass
class Utterance:
    """A stretch of the user's speech, with the pauses in it.

    start_s, end_s: true ones, of the first and the last window that holds speech.
    """

    start_s: float
    end_s: float = 0.0
    peak_db: float = SILENCE_DB
    _levels_db: list[float] = field(default_factory=list)
    _n_run: int = 0
    _n_fresh: int = 0
    _n_silent: int = 0

    def hear(self, window: Window, voiced: bool, background_db: float) -> None:
        """One window more; `voiced` says whether it is of this speech."""
        if window.playing:
            self._n_fresh = 0
        if not voiced:
            self._n_silent += 1
            self._n_run = 0
            return
        is_blip = self._n_run == 0 and self.pause_s >= _LONG_PAUSE_S
        self._n_silent = 0
        self._n_run += 1
        self._n_fresh += not window.playing
        self.peak_db = max(self.peak_db, window.level_db)
        self._levels_db.append(window.level_db)
        if is_blip:
            return
        is_audible = window.level_db > max(self.peak_db - _TRAIL_DB, background_db + _CLEARLY_DB)
        # In a background as loud as the voice no level tells where it ends: then the detector alone does.
        self.end_s = window.t_s if is_audible else max(self.end_s, window.t_s - _TRAIL_S)

    def absorb(self, later: "Utterance") -> None:
        """`later` turns out to belong to this one."""
        self.end_s, self.peak_db = later.end_s, max(self.peak_db, later.peak_db)
        self._levels_db += later._levels_db
        self._n_run, self._n_fresh, self._n_silent = later._n_run, later._n_fresh, later._n_silent

    @property
    def voiced_s(self) -> float:
        """Without the pauses."""
        return len(self._levels_db) * WINDOW_S

    @property
    def run_s(self) -> float:
        """Voiced without a pause until now."""
        return self._n_run * WINDOW_S

    @property
    def fresh_s(self) -> float:
        """Voiced since the loudspeaker last sounded."""
        return self._n_fresh * WINDOW_S

    @property
    def pause_s(self) -> float:
        """The pause that goes on now."""
        return self._n_silent * WINDOW_S

    @property
    def level_db(self) -> float:
        """The median of its voiced windows."""
        return median(self._levels_db)


class Voice:
    """Whether somebody speaks, with hysteresis, and how loud the user, the echo and the background are."""

    def __init__(self) -> None:
        self.background_db = SILENCE_DB
        self._user_db: float | None = None
        self._echo_db: float | None = None
        self._is_voiced = False
        self._has_heard = False

    def hear(self, window: Window) -> bool:
        self._is_voiced = window.probability >= (_EXIT if self._is_voiced else _ENTER)
        if not self._is_voiced and not window.playing:
            step = window.level_db - self.background_db
            self.background_db += step * (1.0 if not self._has_heard else _FALL if step < 0 else _RISE)
            self._has_heard = True
        return self._is_voiced

    def learn_user(self, level_db: float) -> None:
        """The level of a turn that was one."""
        self._user_db = level_db if self._user_db is None else (self._user_db + level_db) / 2

    def learn_echo(self, level_db: float) -> None:
        """The level of an echo that was mistaken for the user."""
        self._echo_db = level_db if self._echo_db is None else max(self._echo_db, level_db)

    def is_loud(self, level_db: float, config: TurnConfig) -> bool:
        """Whether a voice over the reply may be the user's."""
        needed_db = self.background_db + _CLEARLY_DB
        if self._user_db is not None:
            needed_db = max(needed_db, self._user_db - config.quieter_db)
        if config.echo_rules and self._echo_db is not None:
            above_echo_db = self._echo_db + config.above_echo_db
            limit_db = above_echo_db if self._user_db is None else self._user_db - config.below_user_db
            needed_db = max(needed_db, min(above_echo_db, limit_db))
        return level_db >= needed_db
