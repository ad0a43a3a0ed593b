"""Where the sound goes: a file, stdout, the loudspeaker, or several of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from csm_mlx_app import console, options

if TYPE_CHECKING:
    import numpy as np

    from csm_mlx.audio import AudioWriter
    from csm_mlx_app.sound.player import Player

Play = Literal["yes", "if-possible", "no"]


class Outputs:
    """Hands each chunk of sound to every place it goes to.

    out: a file, `-` for stdout, or None.
    play: "if-possible" says why and goes on where there is no loudspeaker; "yes" raises `DeviceError`.
    or_file: where nothing can be played and `out` is None, write a file of a name that is free.
    device: name or index of the loudspeaker; the default one without it.

    Constructing refuses what cannot work, before a model is loaded; nothing is opened or written yet.
    """

    def __init__(self, out: str | None, play: Play, or_file: bool = False, device: str | None = None):
        self.out = out
        self._device = device
        self._play: Play = play
        self._or_file = or_file
        self._file: AudioWriter | None = None
        self._player: Player | None = None
        if play != "no":
            self._attempt_player(None)
        self._need_file()

    def _attempt_player(self, sample_rate_hz: int | None) -> None:
        """Open the loudspeaker, or with no rate only look whether there is one."""
        from csm_mlx.errors import DeviceError
        from csm_mlx_app.sound import devices, player

        try:
            if sample_rate_hz is None:
                devices.find_device("output", self._device)
            else:
                self._player = player.Player(sample_rate_hz, self._device)
        except DeviceError as error:
            if self._play == "yes":
                raise
            self._play = "no"
            console.note(f"not played: {error}")

    def _need_file(self) -> None:
        if self.out is None and self._or_file and self._play == "no":
            self.out = str(free_name(Path("out.wav")))
        if self.out is not None:
            options.sound_target(self.out, "--out")

    @contextmanager
    def open(self, sample_rate_hz: int) -> Iterator["Outputs"]:
        """Leaving the block finishes the file, on errors and Ctrl-C too, and waits until all was heard, or, after an
        error or Ctrl-C, falls silent."""
        from csm_mlx.audio import AudioWriter

        with ExitStack() as stack:
            if self._play != "no":
                self._attempt_player(sample_rate_hz)
                self._need_file()
            if self._player is not None:
                stack.enter_context(self._player)
            if self.out is not None:  # entered last, left first: the file is done before the last words are heard
                self._file = stack.enter_context(AudioWriter(self.out, sample_rate_hz))
            yield self

    def write(self, pcm: "np.ndarray") -> None:
        if self._file is not None:  # first: the loudspeaker may make us wait
            self._file.write(pcm)
        if self._player is not None:
            self._player.write(pcm)

    def pause(self) -> None:
        """A sentence is over; the next may still have to be read."""
        if self._player is not None:
            self._player.pause()

    @property
    def where(self) -> str:
        """For people: `out.wav and the loudspeaker 'MacBook Pro Speakers'`."""
        places = ["stdout" if self.out == "-" else self.out] if self.out else []
        places += [f"the loudspeaker {self._player.name!r}"] if self._player else []
        return " and ".join(places)

    @property
    def played(self) -> bool:
        return self._player is not None

    @property
    def gap_s(self) -> float:
        """Silence heard inside the speech, because it was made slower than it was played."""
        return self._player.gap_s if self._player else 0.0


def free_name(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that is not there: what the user did not name is not replaced."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
