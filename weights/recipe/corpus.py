"""Stage 1: sentences and their plans (phone per frame, letter per frame) -> corpus.npz in the state folder."""

import argparse
import time

import numpy as np
import texts
from phones import plan
from state import log, save_arrays, state_path


def pack(lines: list[str]) -> dict[str, np.ndarray]:
    """Plans of many sentences as flat arrays with `ends`; a sentence that hibari has no phones for is left out."""
    kept, phones, letters, skipped, began = [], [], [], 0, time.time()
    for i, line in enumerate(lines):
        try:
            p = plan(line)
        except ValueError:
            skipped += 1
            continue
        if not 3 <= len(p.phones) <= 64:
            skipped += 1
            continue
        kept.append(line)
        phones.append(p.phones)
        letters.append(p.letters)
        if i % 5000 == 4999:
            left = (time.time() - began) / (i + 1) * (len(lines) - i - 1)
            log(f"planned {i + 1} of {len(lines)}, {skipped} left out, {left:.0f} s left")
    return {
        "texts": np.asarray(kept),
        "ends": np.cumsum([len(p) for p in phones]),
        "phones": np.concatenate(phones).astype(np.int16),
        "letters": np.concatenate(letters).astype(np.int16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=90000)
    args = parser.parse_args()
    save_arrays(state_path("heldout.npz"), **pack([texts.spell(line) for line in texts.held_out()]))
    lines = texts.make(args.sentences)
    arrays = pack(lines)
    save_arrays(state_path("corpus.npz"), **arrays)
    log(f"{len(arrays['texts'])} sentences, {len(arrays['phones'])} frames -> {state_path('corpus.npz')}")


if __name__ == "__main__":
    main()
