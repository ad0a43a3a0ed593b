"""The loudspeaker behind the one generation counter that cancels everything."""

import threading

import numpy as np

from csm_mlx_app.sound.device import Sound


class Output:
    """Nothing that was cancelled is ever written: writing and cancelling exclude each other.

    Work carries the generation that it was begun in; when the counter has moved on, the work is stale.
    """

    def __init__(self, sound: Sound):
        self._sound = sound
        self._lock = threading.Lock()
        self.generation = 0

    def write(self, generation: int, pcm: np.ndarray) -> bool:
        """Queues `pcm` (n_samples,) unless its generation is over; whether it was queued."""
        with self._lock:
            if generation != self.generation:
                return False
            self._sound.write(pcm)
            return True

    def cancel(self) -> int:
        """Ends the generation and the sound; how many samples had been heard since the start when it fell silent."""
        with self._lock:
            self.generation += 1
            return self._sound.drop()
