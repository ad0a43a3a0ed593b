"""Stage 3: what a phone sounds like between its neighbours, so that sound is a function of nearby phones only.

hibari's text encoder gives every phone a vector that depends on the whole sentence, and so do loudness and voicing. A
quarter of the energy of a frame then differs between sentences in ways that codes do not say, and no decoder can know.
Here the vectors are averaged, over many sentences, for each phone between its two neighbours, and hibari's decoder
makes sound of the averages: as sharp as before, unlike averages of sound, and the same wherever the same phones meet.
"""

import argparse
from functools import cache

import numpy as np
from lm_data import Corpus
from phones import PHONES, SILENCE, Plan, plan
from state import log, save_arrays, state_path
from synth import UNITS_PER_FRAME, VOICED_ABOVE_HZ, features

HOPS_PER_UNIT = 2
HOPS = HOPS_PER_UNIT * UNITS_PER_FRAME
BASE = len(PHONES)
LEAST = 3
"""Meetings from which on an average is used; a rarer one falls back to fewer neighbours."""
ANY = -1
KINDS = ("around", "after", "before", "alone")


def key_of(kind: str, before: int, phone: int, after: int) -> int:
    """A number for what `kind` looks at."""
    before = before if kind in ("around", "before") else ANY
    after = after if kind in ("around", "after") else ANY
    return ((KINDS.index(kind) * (BASE + 1) + before + 1) * BASE + phone) * (BASE + 1) + after + 1


def neighbours(phones: np.ndarray) -> list[tuple[int, int, int]]:
    """(before, phone, after) of every phone of a plan and of the silence at both its ends."""
    row = [SILENCE, SILENCE, *map(int, phones), SILENCE, SILENCE]
    return list(zip(row, row[1:], row[2:], strict=False))


class Contexts:
    """One row per context: `SIZE` numbers, the phone's vector in each of its units, then level and voicing per hop."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, rows: np.ndarray):
        self.at = {int(key): i for i, (key, count) in enumerate(zip(keys, counts, strict=True)) if count >= LEAST}
        self.rows = rows

    @classmethod
    @cache
    def load(cls) -> "Contexts":
        with np.load(state_path("contexts.npz")) as file:
            return cls(file["keys"], file["counts"], file["rows"].astype(np.float32))

    def _first(self, kinds: tuple[str, ...], context: tuple[int, int, int]) -> np.ndarray:
        for kind in kinds:
            row = self.at.get(key_of(kind, *context))
            if row is not None:
                return self.rows[row]
        raise KeyError(f"the corpus never says {PHONES[context[1]]!r}; run contexts.py on more sentences")

    def features(self, planned: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`synth.features` of a plan, made of averages.

        The first unit of a phone does not look at the phone after it: a codec frame that ends there is then known
        from the phones that the decoder has seen.
        """
        vectors, levels, voiced = [], [], []
        for context in neighbours(planned.phones):
            late = split(self._first(("around", "after", "alone"), context))
            early = split(self._first(("before", "alone"), context))
            vectors += [early[0][:1], late[0][1:]]
            levels += [early[1][:HOPS_PER_UNIT], late[1][HOPS_PER_UNIT:]]
            voiced += [early[2][:HOPS_PER_UNIT], late[2][HOPS_PER_UNIT:]]
        return np.concatenate(vectors), np.concatenate(levels), np.concatenate(voiced) > 0.5


def split(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (UNITS_PER_FRAME, width), levels (HOPS,) and share of voiced hops (HOPS,)."""
    return row[: -2 * HOPS].reshape(UNITS_PER_FRAME, -1), row[-2 * HOPS : -HOPS], row[-HOPS:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=8000)
    args = parser.parse_args()
    sums: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    for i, text in enumerate(Corpus.load("corpus.npz").texts[: args.sentences]):
        planned = plan(str(text))
        vectors, levels, f0_hz = features(planned.ids, planned.units)
        levels, voiced = levels.reshape(-1, HOPS), (f0_hz > VOICED_ABOVE_HZ).reshape(-1, HOPS)
        rows = np.concatenate([vectors.reshape(len(levels), -1), levels, voiced], axis=1)
        for context, row in zip(neighbours(planned.phones), rows, strict=True):
            for kind in KINDS:
                key = key_of(kind, *context)
                sums[key] = sums[key] + row if key in sums else row
                counts[key] = counts.get(key, 0) + 1
        if (i + 1) % 1000 == 0:
            log(f"{i + 1} of {args.sentences} sentences, {len(sums)} contexts")
    n = np.array([counts[key] for key in sums])
    save_arrays(
        state_path("contexts.npz"),
        keys=np.array(list(sums)),
        counts=n,
        rows=(np.stack(list(sums.values())) / n[:, None]).astype(np.float16),
    )


if __name__ == "__main__":
    main()
