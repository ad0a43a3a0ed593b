"""The mean sound of a codec frame for each voice, phone and phone before: what the codes alone determine.

The same phones sound a little different in every sentence: half of the energy is such variation, which
no decoder can know and which only makes its gradients noisy. The means carry the words nearly as well (README).
"""

import numpy as np
import torch
from phones import PHONES, SILENCE, VOICES
from speech_data import Speech
from synth import FRAME_SAMPLES


class Templates:
    """Tables for VOICES, (before, phone, FRAME_SAMPLES) each; a pair never heard has the mean of its phone."""

    def __init__(self, speech: Speech):
        n = len(PHONES)
        self.tables: dict[tuple[int, int], torch.Tensor] = {}
        for voice in VOICES:
            sums = np.zeros((n, n, FRAME_SAMPLES), np.float32)
            counts = np.zeros((n, n), np.float32)
            for sound, codes in zip(speech.sounds, speech.codes, strict=True):
                if tuple(codes[0, 1:]) != (voice.cycles, voice.tract):
                    continue
                frames = sound.reshape(-1, FRAME_SAMPLES).astype(np.float32) / 32767
                before, phone = np.append(SILENCE, codes[:-1, 0]), codes[:, 0]
                np.add.at(counts, (before, phone), 1)
                for b, p, frame in zip(before, phone, frames, strict=True):
                    sums[b, p] += frame
            of_phone = sums.sum(0) / np.maximum(counts.sum(0), 1)[:, None]
            table = np.where(counts[..., None] > 0, sums / np.maximum(counts, 1)[..., None], of_phone[None])
            self.tables[voice.cycles, voice.tract] = torch.from_numpy(table)

    def idealise(self, sound: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Sound (B, T * FRAME_SAMPLES), rows of known voices replaced by templates, as if after silence."""
        sound = sound.clone()
        for row in range(len(sound)):
            table = self.tables.get((int(codes[row, 0, 1]), int(codes[row, 0, 2])))
            if table is not None:
                before = torch.cat([torch.tensor([SILENCE]), codes[row, :-1, 0]])
                sound[row] = table[before, codes[row, :, 0]].flatten()
        return sound
