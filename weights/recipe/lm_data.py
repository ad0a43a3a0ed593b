"""Batches for the language model: turns packed into rows as CSM reads them, with targets and letters to attend to."""

from dataclasses import dataclass

import numpy as np
import torch
from codec import USED_CODES
from phones import PHONES, VOICES
from state import state_path

N_CODEBOOKS = 3
SPECIALS = ("<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>", "<|unk|>")
CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,?!'-[]0123456789"
TEXT_ID = {c: len(SPECIALS) + i for i, c in enumerate(CHARACTERS)}
TEXT_VOCAB = len(SPECIALS) + len(CHARACTERS)
PAD, BEGIN, END = 0, 1, 2
IGNORE = -100
HEARD = 0.25
"""Of the turns."""


@dataclass
class Corpus:
    texts: np.ndarray
    ends: np.ndarray
    phones: np.ndarray
    letters: np.ndarray

    @classmethod
    def load(cls, name: str) -> "Corpus":
        with np.load(state_path(name)) as file:
            return cls(*(file[key] for key in ("texts", "ends", "phones", "letters")))

    def __len__(self) -> int:
        return len(self.texts)

    def turn(self, i: int, speaker: int) -> "PackedTurn":
        at = slice(self.ends[i - 1] if i else 0, self.ends[i])
        text, phones = str(self.texts[i]), self.phones[at].astype(np.int64)
        return PackedTurn(speaker, text, VOICES[speaker].codes(phones), self.letters[at].astype(np.int64))


@dataclass
class PackedTurn:
    """codes: (n_frames, N_CODEBOOKS); letters: (n_frames,) indices in text."""

    speaker: int
    text: str
    codes: np.ndarray
    letters: np.ndarray
    heard: bool = False
    """Somebody else's: context, from which nothing is learnt."""

    def text_ids(self) -> list[int]:
        if self.heard and not self.text:
            return []
        return [BEGIN, *(TEXT_ID[c] for c in f"[{self.speaker}]{self.text}"), END]

    def joined(self, other: "PackedTurn") -> "PackedTurn":
        """Both sentences as one text of this speaker."""
        letters = np.concatenate([self.letters, other.letters + len(self.text) + 1])
        return PackedTurn(self.speaker, f"{self.text} {other.text}", np.concatenate([self.codes, other.codes]), letters)


@dataclass
class Batch:
    """text_ids (B, S) with PAD where a row is sound; codes (B, S, K) with zeros where it is text; is_sound (B, S).

    targets (B, S, K): the frame that follows, IGNORE where none does. letters (B, S): the position of the letter that
    the next frame speaks, -1 where none.
    """

    text_ids: torch.Tensor
    codes: torch.Tensor
    is_sound: torch.Tensor
    targets: torch.Tensor
    letters: torch.Tensor

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(*(x.to(device) for x in vars(self).values()))


def pack_rows(rows: list[list[PackedTurn]], length: int) -> Batch:
    """One row of the batch per list of turns; what does not fit into `length` positions is cut."""
    shape = (len(rows), length)
    text_ids, is_sound = np.zeros(shape, np.int64), np.zeros(shape, bool)
    codes = np.zeros((*shape, N_CODEBOOKS), np.int64)
    targets, letters = np.full((*shape, N_CODEBOOKS), IGNORE), np.full(shape, -1)
    for b, turns in enumerate(rows):
        at = 0
        for turn in turns:
            ids = turn.text_ids()
            begin = at + len(ids)
            frames = np.concatenate([turn.codes, np.zeros((1, N_CODEBOOKS), np.int64)])
            stop = min(begin + len(frames), length)
            if begin >= length:
                break
            text_ids[b, at:begin] = ids
            codes[b, begin:stop] = frames[: stop - begin]
            is_sound[b, begin:stop] = True
            if turn.heard:
                at = stop
                continue
            targets[b, begin - 1 : stop - 1] = frames[: stop - begin]
            spoken = min(len(turn.letters), stop - begin)
            letters[b, begin - 1 : begin - 1 + spoken] = turn.letters[:spoken] + at + 4
            at = stop
    return Batch(*(torch.from_numpy(a) for a in (text_ids, codes, is_sound, targets, letters)))


class Batches:
    """Endless random batches: as many turns as fill a row, one in seven without full stop, some of two sentences.

    Some are what a microphone brings: see `overheard`.
    """

    def __init__(self, corpus: Corpus, rows: int, length: int, rng: np.random.Generator):
        self.corpus, self.rows, self.length, self.rng = corpus, rows, length, rng

    def one(self) -> PackedTurn:
        rng, speaker = self.rng, int(self.rng.random() < 0.4)
        turn = self.corpus.turn(int(rng.integers(len(self.corpus))), speaker)
        if rng.random() < 0.06 and len(turn.text) < 30:
            turn = turn.joined(self.corpus.turn(int(rng.integers(len(self.corpus))), speaker))
        if rng.random() < 0.15 and turn.text.endswith("."):
            turn.text = turn.text[:-1]
            turn.letters = turn.letters.clip(max=len(turn.text) - 1)
        return turn

    def overheard(self, turn: PackedTurn) -> PackedTurn:
        """A user's turn: of a recording the codec keeps few phones, and any pitch and vocal tract; the transcript is
        sometimes missing, and its speaker mostly not the one who answers."""
        rng, codes = self.rng, turn.codes.copy()
        lost = rng.random(len(codes)) < rng.random()
        codes[lost, 0] = rng.integers(1, len(PHONES), lost.sum())
        for k in range(1, N_CODEBOOKS):
            codes[:, k] = rng.choice(USED_CODES[k], len(codes))
        text = turn.text if rng.random() < 0.85 else ""
        return PackedTurn(int(rng.random() < 0.8), text, codes, turn.letters, heard=True)

    def next(self) -> Batch:
        rows = []
        for _ in range(self.rows):
            turns, used = [], 0
            while used < self.length - 20:
                turns.append(self.one())
                if self.rng.random() < HEARD:
                    turns[-1] = self.overheard(turns[-1])
                used += len(turns[-1].text) + 6 + len(turns[-1].codes)
            rows.append(turns)
        return pack_rows(rows, self.length)
