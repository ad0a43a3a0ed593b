"""Random crops of the synthetic speech, in memory as int16."""

import numpy as np
import torch
from state import state_path
from synth import FRAME_SAMPLES

UNKNOWN_FRAMES = 3
"""Of a crop from within a sentence: what they sound like depends on the phones before the crop."""


class Speech:
    """All shards that exist now; `refresh` looks for new ones."""

    def __init__(self) -> None:
        self.sounds: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []
        self.shards: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(state_path("speech", "x").parent.glob("*.npz")):
            if path.name in self.shards:
                continue
            self.shards.add(path.name)
            with np.load(path) as file:
                sound, codes, begin = file["sound"], file["codes"], 0
                for end in file["ends"]:
                    self.sounds.append(sound[begin * FRAME_SAMPLES : end * FRAME_SAMPLES])
                    self.codes.append(codes[begin:end].astype(np.int64))
                    begin = end

    def keep(self, voices: set[tuple[int, int]]) -> None:
        """Only the sentences of these voices, pairs of codes 1 and 2."""
        kept = [i for i, codes in enumerate(self.codes) if (int(codes[0, 1]), int(codes[0, 2])) in voices]
        self.sounds, self.codes = [self.sounds[i] for i in kept], [self.codes[i] for i in kept]

    def crops(
        self, rng: np.random.Generator, n: int, frames: int, delay: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sound (n, frames * FRAME_SAMPLES) float32, codes (n, frames, 3), and known (n, frames, 1).

        delay: frames by which the sound comes after its codes; silence is before a sentence.
        known: 0.0 for the first frames of a crop from within a sentence, whose past nobody sees, else 1.0.
        Sentences shorter than `frames` are not used.
        """
        sounds, codes, known = [], [], np.ones((n, frames, 1), np.float32)
        while len(sounds) < n:
            i = int(rng.integers(len(self.sounds)))
            if len(self.codes[i]) < frames:
                continue
            at = int(rng.integers(len(self.codes[i]) - frames + 1))
            if rng.random() < 0.25:
                at = 0
            known[len(sounds), : UNKNOWN_FRAMES if at else 0] = 0.0
            sound = self.sounds[i][max(0, at - delay) * FRAME_SAMPLES : (at - delay + frames) * FRAME_SAMPLES]
            sounds.append(np.pad(sound, (frames * FRAME_SAMPLES - len(sound), 0)))
            codes.append(self.codes[i][at : at + frames])
        sound = torch.from_numpy(np.stack(sounds).astype(np.float32) / 32767)
        return sound, torch.from_numpy(np.stack(codes)), torch.from_numpy(known)
