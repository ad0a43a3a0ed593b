"""Random crops of the synthetic speech, in memory as int16."""

import numpy as np
import torch
from state import state_path
from synth import FRAME_SAMPLES


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

    def crops(self, rng: np.random.Generator, n: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, frames * FRAME_SAMPLES) float32 sound and (n, frames, 3) codes; short sentences are not used."""
        sounds, codes = [], []
        while len(sounds) < n:
            i = int(rng.integers(len(self.sounds)))
            if len(self.codes[i]) < frames:
                continue
            at = int(rng.integers(len(self.codes[i]) - frames + 1))
            if rng.random() < 0.25:
                at = 0
            sounds.append(self.sounds[i][at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES])
            codes.append(self.codes[i][at : at + frames])
        return torch.from_numpy(np.stack(sounds).astype(np.float32) / 32767), torch.from_numpy(np.stack(codes))
