"""Teach csm-tiny a voice that its language model never had, through the real commands, and measure what it became.

Five minutes of the corpus, spoken 12 % lower than speaker 0, become a manifest; `csm
train` makes a LoRA of speaker 0; `csm evaluate` speaks the held-out sentences before and after. Fails unless the pitch
has moved at least halfway and the word error rate has risen by no more than a fifth.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from contexts import Contexts
from lm_data import Corpus
from phones import plan
from speech import NEW_VOICE, say
from state import log, state_path
from synth import FRAME_SAMPLES, SAMPLE_RATE_HZ

MINUTES = 5
TRAINING = ("--steps", "200", "--batch", "8", "--lr", "0.0005", "--target", "depth_decoder.*_proj")
"""Unless other options of `csm train` are given. Pitch is codebook 1, which the depth decoder says."""
FIRST = 40_000
"""Of the corpus' sentences, far behind those of `speech.py`."""


def make_clips(folder: Path) -> Path:
    """Write MINUTES of clips and their manifest, and return that."""
    import soundfile

    Contexts.load()
    texts, manifest, spoken_s = Corpus.load("corpus.npz").texts, folder / "clips.jsonl", 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with manifest.open("w") as file:
        for i, text in enumerate(texts[FIRST:]):
            if spoken_s >= 60 * MINUTES:
                break
            sound, codes = say(plan(str(text)), NEW_VOICE)[0]
            soundfile.write(folder / f"{i:03d}.wav", sound, SAMPLE_RATE_HZ)
            file.write(json.dumps({"speaker": 0, "text": str(text), "audio": f"{i:03d}.wav"}) + "\n")
            spoken_s += len(codes) * FRAME_SAMPLES / SAMPLE_RATE_HZ
    log(f"{i} clips, {spoken_s / 60:.1f} minutes -> {manifest}")
    return manifest


def csm(*arguments: str) -> str:
    """What the command prints on stdout."""
    command = [sys.executable, "-m", "csm_mlx_app", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="csm-tiny")
    args, more = parser.parse_known_args()
    sentences, folder = str(Path(__file__).with_name("heldout.txt")), state_path("new-voice", "x").parent
    manifest, adapter = make_clips(folder), folder / "adapter"
    train = ["train", str(manifest), "--model", args.model, "-o", str(adapter), "--force"]
    csm(*train, *(more or TRAINING))
    evaluate = ["evaluate", sentences, "--model", args.model, "--json"]
    before, after = (json.loads(csm(*evaluate, *more)) for more in ([], ["--adapter", str(adapter)]))
    wanted_hz = NEW_VOICE.cycles * SAMPLE_RATE_HZ / FRAME_SAMPLES
    moved = (after["pitch_hz"] - before["pitch_hz"]) / (wanted_hz - before["pitch_hz"])
    for name, result in (("before", before), ("after", after)):
        log(f"{name}: {result['pitch_hz']:.1f} Hz, word error rate {100 * result['word_error_rate']:.1f} %")
    log(f"wanted {wanted_hz:.1f} Hz: moved {100 * moved:.0f} % of the way")
    if moved < 0.5 or after["word_error_rate"] > 1.2 * before["word_error_rate"]:
        sys.exit("the new voice is not there, or is understood less well")


if __name__ == "__main__":
    main()
