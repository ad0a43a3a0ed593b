"""Text to the plan of an utterance: one phone per codec frame, with a pitch for each frame.

Durations are a rule, so rhythm is a function of the phones: every phone takes one frame of 80 ms, stress marks and
spaces share their neighbour's frame, a comma takes two frames of silence, the end of a sentence two.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from synth import UNITS_PER_FRAME

VOWELS = "AIOWYiuɑɔɛɜəʌæɪʊᵊɐᵻaeo"
CONSONANTS = "bdfhjklmnpstvwzðŋɡɹʃʒθʤʧT"
PAUSES = {",": 2, ";": 2, ":": 2, "—": 2, ".": 2, "!": 2, "?": 2, "…": 2}
STRESSES = "ˈˌ"
PHONES = ["<end>", "<silence>", *CONSONANTS, *VOWELS, *("ˈ" + v for v in VOWELS)]
"""Code of codebook 0 -> phone. Code 0 is never spoken: a frame of zeros ends the utterance."""
CODE = {phone: code for code, phone in enumerate(PHONES)}
SILENCE = CODE["<silence>"]
FIRST_VOWEL, FIRST_STRESSED = CODE[VOWELS[0]], CODE["ˈ" + VOWELS[0]]


@dataclass(frozen=True)
class Plan:
    """What hibari is asked to say and what each codec frame holds.

    ids, units: hibari's tokens and their durations; the first token is one frame of silence, which is cut later.
    phones: (n_frames,) codes of codebook 0.
    letters: (n_frames,) index in `text` of the letter spoken, an estimate within the word, for guided attention.
    """

    text: str
    ids: list[int]
    units: list[int]
    phones: np.ndarray
    letters: np.ndarray


@cache
def hibari_front_end():
    from hibari import Hibari

    return Hibari()


def spell(text: str) -> str:
    """The text as the tokenizer sees it: lower case, only letters, apostrophes and , . ! ?"""
    text = text.lower().replace("’", "'").replace("-", " ")
    text = re.sub(r"[;:—–]+", ",", text)
    return re.sub(r"\s+", " ", re.sub(r"[^a-z',.!? ]", "", text)).strip()


def word_phonemes(text: str) -> list[tuple[str, int, int]]:
    """(phonemes, begin, end) for every word and mark of a sentence, where text[begin:end] is its spelling."""
    from hibari.g2p import normalize

    g2p = hibari_front_end().g2p
    tokens = g2p.phonemize_tokens(g2p.tokenize(normalize(text)))
    at, words = 0, []
    for token in tokens:
        begin = text.find(token.text, at)
        if begin < 0:
            raise ValueError(f"{token.text!r} is not in {text!r} after {at}: spell() the text first")
        at = begin + len(token.text)
        if token.phonemes:
            words.append((token.phonemes + (" " if token.whitespace else ""), begin, at))
    return words


def plan(text: str) -> Plan:
    """Plan one sentence, already `spell`ed and ending in . ! or ?"""
    vocab = hibari_front_end().vocab
    ids, units, phones, letters = [0], [UNITS_PER_FRAME], [], []
    for phonemes, begin, end in word_phonemes(text):
        spoken = [c for c in phonemes if c in VOWELS or c in CONSONANTS or c in PAUSES]
        at = 0
        for i, c in enumerate(phonemes):
            before, after = phonemes[i - 1 : i], phonemes[i + 1 : i + 2]
            if c not in vocab:
                raise ValueError(f"hibari has no phone {c!r}, met in {phonemes!r} of {text!r}")
            if c in STRESSES:
                taken = 1
            elif c == " ":
                taken = 0 if before in PAUSES else 1
            elif c in PAUSES:
                taken = PAUSES[c] * UNITS_PER_FRAME
                phones += [SILENCE] * PAUSES[c]
            elif c in VOWELS or c in CONSONANTS:
                taken = UNITS_PER_FRAME - (before in STRESSES and before != "") - (after == " ")
                phones.append(CODE["ˈ" + c if before == "ˈ" and c in VOWELS else c])
            else:
                raise ValueError(f"no rule for {c!r}, met in {phonemes!r} of {text!r}")
            ids.append(vocab[c])
            units.append(taken)
            if c not in STRESSES and c != " ":
                letters += [begin + at * (end - begin) // max(1, len(spoken))] * (PAUSES.get(c, 1))
                at += 1
    ids.append(0)
    units.append(UNITS_PER_FRAME)
    return Plan(text, ids, units, np.asarray(phones), np.asarray(letters))


@dataclass(frozen=True)
class Voice:
    """A speaker: codes of codebook 1, the periods per frame (12.5 Hz each), and of codebook 2, an index into TRACTS."""

    cycles: int
    tract: int

    @property
    def tract_factor(self) -> float:
        return TRACTS[self.tract]

    def codes(self, phones: np.ndarray) -> np.ndarray:
        """(n_frames, 3): the phones said by this voice, whose pitch never changes."""
        return np.stack([phones, np.full(len(phones), self.cycles), np.full(len(phones), self.tract)], axis=1)


TRACTS = (1.0, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)
"""Code of codebook 2 -> factor on the formants. Code 0 is kept for the end frame."""
VOICES = (Voice(cycles=17, tract=6), Voice(cycles=11, tract=2))
"""Speaker -> voice: 212 Hz, and 137 Hz with a vocal tract longer by a quarter."""
