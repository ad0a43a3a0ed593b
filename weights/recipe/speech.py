"""Stage 4: the sound that the codec learns from, in shards of 250 sentences under speech/ of the state folder.

Every sentence is spoken by both voices of the language model, one in four also by `NEW_VOICE`, and one in four by one
of seven others: voices that the codec carries and the language model has never had.
"""

import argparse
import random
import time

import numpy as np
from contexts import Contexts
from lm_data import Corpus
from phones import VOICES, Plan, Voice, plan
from state import log, save_arrays, state_path
from synth import FRAME_SAMPLES, render, spectra

SHARD = 250
LEAD = 0.5
"""A codec frame begins in the middle of the phone before: measured best of 0, 1/6, 1/3, 1/2 (README)."""
GAIN = 1.5
NEW_VOICE = Voice(cycles=15, tract=6)
"""What `new_voice.py` teaches the language model."""
OTHER_VOICES = tuple(
    Voice(cycles, tract) for cycles, tract in ((9, 1), (13, 2), (11, 3), (13, 4), (15, 5), (19, 6), (20, 8))
)


def say(planned: Plan, *voices: Voice) -> list[tuple[np.ndarray, np.ndarray]]:
    """(n_frames * FRAME_SAMPLES,) float32 sound and (n_frames, 3) codes of one sentence, for every voice."""
    parts, spoken = spectra(*Contexts.load().features(planned)), []
    for voice in voices:
        codes = voice.codes(planned.phones)
        sound = render(parts, codes[:, 1], voice.tract_factor, LEAD) * GAIN
        sound = np.pad(sound, (0, len(codes) * FRAME_SAMPLES - len(sound)))
        spoken.append((sound.clip(-0.99, 0.99), codes))
    return spoken


def some_voices(rng: random.Random) -> list[Voice]:
    chance = rng.random()
    return [*VOICES, *([NEW_VOICE] if chance < 0.25 else [rng.choice(OTHER_VOICES)] if chance < 0.5 else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=4000)
    args = parser.parse_args()
    texts = Corpus.load("corpus.npz").texts
    began, made, n_shards = time.time(), 0, -(-args.sentences // SHARD)
    for shard in range(n_shards):
        path = state_path("speech", f"{shard:03d}.npz")
        if path.exists():
            continue
        rng = random.Random(shard)
        sentences = texts[shard * SHARD : (shard + 1) * SHARD]
        spoken = [one for text in sentences for one in say(plan(str(text)), *some_voices(rng))]
        save_arrays(
            path,
            sound=np.round(np.concatenate([s for s, _ in spoken]) * 32767).astype(np.int16),
            codes=np.concatenate([c for _, c in spoken]).astype(np.int16),
            ends=np.cumsum([len(c) for _, c in spoken]),
        )
        made += 1
        left = (time.time() - began) / made * (n_shards - shard - 1)
        log(f"shard {shard + 1} of {n_shards}, {left:.0f} s left")


if __name__ == "__main__":
    main()
