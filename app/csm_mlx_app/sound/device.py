"""What a conversation hears through and speaks through: a microphone and a loudspeaker behind one Protocol."""

from typing import NamedTuple, Protocol

import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.clock import Clock

RATE_HZ = 24_000
"""Of all sound between the devices and the models: Mimi's rate."""
BLOCK_SAMPLES = 480
BLOCK_S = BLOCK_SAMPLES / RATE_HZ
CAPACITY_S = 60.0
"""How far making may run ahead of playing."""


def check_room(n_queued: int, n_more: int) -> None:
    """`DeviceError` where `n_more` samples at 24 kHz would be more than a loudspeaker's queue holds."""
    if n_queued + n_more > CAPACITY_S * RATE_HZ:
        raise DeviceError(
            f"{(n_queued + n_more) / RATE_HZ:.0f} s of sound for the loudspeaker, which queues {CAPACITY_S:.0f} s; "
            "expected the writer to wait"
        )


class Block(NamedTuple):
    """20 ms of microphone. Consecutive blocks are 20 ms apart (to 10 ms): what was lost is silence."""

    t_s: float
    """Clock time at which its last sample was captured."""
    pcm: np.ndarray
    """(480,) float32: the microphone at 24 kHz."""
    played: np.ndarray
    """(480,) float32: what the loudspeaker sounded then, or up to 20 ms later, never earlier: the echo's reference."""


class Fault(NamedTuple):
    """Something that happened to a device. `message` is one line, and says what to do where something can be done."""

    t_s: float
    kind: str
    """input-gone, output-gone, input-zeros, rate-changed, recovered, output-file or defect."""
    message: str


class Sound(Protocol):
    """A microphone and a loudspeaker. `read` is for one thread, all that concerns the output for any, one at a time."""

    input_name: str | None
    output_name: str | None

    @property
    def clock(self) -> Clock: ...

    @property
    def more(self) -> bool:
        """Set by the writer: more is to come, so running dry is an underrun. False also lets the last samples out."""
        ...

    @more.setter
    def more(self, more: bool) -> None: ...

    def start(self) -> None:
        """Open the devices; `DeviceError` lists what there is."""
        ...

    def close(self) -> None:
        """Fall silent and let go of the devices; `read` returns None from now on. A second call does nothing."""
        ...

    def read(self) -> Block | None:
        """The next block, for which the clock is notified; None when the input has ended or is closed."""
        ...

    def write(self, pcm: np.ndarray) -> None:
        """Queue `pcm` (n_samples,) float32 at 24 kHz; never waits. `DeviceError` beyond `CAPACITY_S`."""
        ...

    @property
    def n_written(self) -> int:
        """Samples at 24 kHz since the start; after `drop`, those that were heard."""
        ...

    @property
    def n_played(self) -> int:
        """Of those, heard by now."""
        ...

    @property
    def buffered_s(self) -> float:
        """Sound that is queued and that the device did not take yet."""
        ...

    def pause(self) -> None:
        """Fade out in 8 ms and hold what is queued; silence is then no underrun."""
        ...

    def resume(self) -> None:
        """Fade in and go on."""
        ...

    def drop(self) -> int:
        """Fade out and forget what is queued; the next `write` is heard at once, also after `pause`.

        Returns `n_played` at which the sound ends, and `n_written` from now on.
        """
        ...

    @property
    def n_underruns(self) -> int:
        """How often the loudspeaker ran dry while there was `more`."""
        ...

    @property
    def n_overruns(self) -> int:
        """How often sound of the microphone was lost."""
        ...

    def faults(self) -> list[Fault]:
        """New ones since the last call."""
        ...
