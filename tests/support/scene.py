"""A conversation as the turn machine sees it: windows of voice and silence, and what others answer."""

from csm_mlx_app.assistant.events import Action, Event, ReplyStarted, Show, Transcribe, Transcribed, Window
from csm_mlx_app.assistant.turn_config import TurnConfig
from csm_mlx_app.assistant.turns import TurnMachine
from csm_mlx_app.assistant.voice import WINDOW_S

VOICE_DB, NOISE_DB = -25.0, -70.0


class Scene:
    """`t_s` goes on with each window; `actions` are all so far, `times_s` when each was taken."""

    def __init__(self, config: TurnConfig | None = None):
        self.machine = TurnMachine(config or TurnConfig.of("high"))
        self.t_s = 0.0
        self.actions: list[Action] = []
        self.times_s: list[float] = []

    def send(self, event: Event) -> list[Action]:
        """The actions but for `Show`, which follows from the state."""
        done = self.machine.step(event)
        self.actions += done
        self.times_s += [event.t_s] * len(done)
        return [action for action in done if not isinstance(action, Show)]

    def voice(self, ms: int, *, db: float = VOICE_DB, playing: bool = False) -> list[Action]:
        return self._windows(ms, 0.99, db, playing)

    def quiet(self, ms: int, *, db: float = NOISE_DB, playing: bool = False) -> list[Action]:
        return self._windows(ms, 0.01, db, playing)

    def _windows(self, ms: int, probability: float, db: float, playing: bool) -> list[Action]:
        done = []
        for _ in range(round(ms / 1000 / WINDOW_S)):
            self.t_s += WINDOW_S
            done += self.send(Window(self.t_s, probability, db, playing))
        return done

    def asked(self) -> Transcribe:
        return next(action for action in reversed(self.actions) if isinstance(action, Transcribe))

    def hears(self, text: str, *, echo: bool = False) -> list[Action]:
        """The recogniser answers what it was last asked."""
        asked = self.asked()
        return self.send(Transcribed(self.t_s, asked.turn, asked.revision, text, asked.final, echo))

    def ask(self, text: str = "What is the capital of France?") -> int:
        """A whole turn until it is opened; returns its number."""
        self.quiet(96)
        self.voice(960)
        self.quiet(256)
        self.hears(text)
        return self.asked().turn

    def answer(self, text: str = "What is the capital of France?", *, warm: bool = True) -> int:
        """A turn, and its reply is heard; warm: for longer than the echo canceller learns."""
        turn = self.ask(text)
        self.send(ReplyStarted(self.t_s, turn))
        if warm:
            self.quiet(1500, playing=True)
        return turn
