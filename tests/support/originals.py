"""What the originals computed, as `tests/parity/torch_side` wrote it, and the checks of ours against it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.frames import END_CODE, Turn, TurnRows, is_end, text_ids
from csm_mlx.generate.context import Context
from csm_mlx.generate.frame import sample_frame
from csm_mlx.generate.session import Csm
from csm_mlx.sampling import Sampler

TOLERANCE = 1e-4
GREEDY = SamplingConfig(temperature=0.0)

RANDOM_CASES = ("narrow-1b", "two-codebooks", "odd-shapes")
"""Small CSMs with random weights, of `torch_side/random_csm.py`."""

RunTorch = Callable[..., str]
"""`run_torch(script, *args)`: the output of a script of torch_side."""


@dataclass(frozen=True)
class Reference:
    """What the originals made: tensors, and the folder that also holds the checkpoints."""

    folder: Path
    tensors: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def conversation(self) -> dict:
        return json.loads((self.folder / "conversation.json").read_text())


def read_reference(folder: Path, name: str = "reference") -> Reference:
    """The reference that a script of torch_side, or `tests/golden/make.py`, wrote into `folder`."""
    tensors = mx.load(str(folder / f"{name}.safetensors"))
    assert isinstance(tensors, dict)
    return Reference(folder, {name: _floats(np.array(value)) for name, value in tensors.items()})


def _floats(value: np.ndarray) -> np.ndarray:
    """Committed sound is 16 bits wide; everything else stays as it is."""
    return value.astype(np.float32) / 32768 if value.dtype == np.int16 else value


@dataclass(frozen=True, eq=False)
class Case:
    """A loaded checkpoint, and what transformers made of the same weights."""

    csm: Csm
    reference: Reference

    def turns(self) -> list[Turn]:
        turns = self.reference.conversation()["turns"]
        return [Turn(**turn, pcm=self.reference[f"pcm.{i}"]) for i, turn in enumerate(turns)]

    def reply(self) -> tuple[str, int]:
        reply = self.reference.conversation()["reply"]
        return reply["text"], reply["speaker"]

    def ids(self, text: str, speaker: int) -> tuple[int, ...]:
        return text_ids(text, speaker, self.csm.tokenizer, self.csm.config.csm)

    def prompt(self) -> tuple[Context, mx.array]:
        """The conversation up to the reply's text, and the state that predicts the reply's first frame."""
        context = Context(self.csm.model)
        for turn in self.turns():
            assert turn.pcm is not None
            context.add(TurnRows(self.ids(turn.text, turn.speaker), self.csm.encode(turn.pcm)), reference=False)
        return context, context.open_turn(self.ids(*self.reply()))


def check_context(case: Case) -> None:
    """The codes of the context's sound, and the sound of its codes."""
    for i, turn in enumerate(case.turns()):
        assert turn.pcm is not None
        np.testing.assert_array_equal(case.csm.encode(turn.pcm), case.reference[f"codes.{i}"])
    pcm, _ = case.csm.codec.decode(mx.array(case.reference["codes.0"][None]))
    expected = case.reference["decoded.0"]
    assert np.abs(np.array(pcm[0, : len(expected), 0]) - expected).max() < TOLERANCE


def check_prompt_ids(case: Case) -> None:
    """Text ids in their places among the rows, against transformers' prompt, which has placeholders for sound."""
    ids: list[int | None] = []
    for i, turn in enumerate(case.turns()):
        rows = TurnRows(case.ids(turn.text, turn.speaker), case.reference[f"codes.{i}"])
        ids += [*rows.text_ids, *[None] * (rows.n_rows - len(rows.text_ids))]
    ids += case.ids(*case.reply())
    theirs = case.reference["prompt_ids"].tolist()
    assert len(theirs) == len(ids)
    assert [(i, a, b) for i, (a, b) in enumerate(zip(ids, theirs, strict=True)) if a is not None and a != b] == []


def check_prompt_rows(case: Case) -> None:
    """What enters the backbone, against transformers' merged embeddings."""
    model, rows = case.csm.model, []
    for i, turn in enumerate(case.turns()):
        sound = TurnRows((), case.reference[f"codes.{i}"]).audio_rows()
        assert (sound[-1] == END_CODE).all()
        rows.append(model.embed_text(mx.array([case.ids(turn.text, turn.speaker)])))
        rows.append(model.embed_audio(mx.array(sound[None])))
    rows.append(model.embed_text(mx.array([case.ids(*case.reply())])))
    difference = np.abs(np.array(mx.concatenate(rows, axis=1)[0]) - case.reference["prompt_rows"])
    assert difference.max() < 1e-5


def check_logits(case: Case) -> None:
    """Teacher-forced on transformers' own frames, every codebook of every frame, through the cache."""
    frames = case.reference["greedy"]
    context, hidden = case.prompt()
    states = [hidden] + [context.step(mx.array(frame[None])) for frame in frames[:-1]]
    ours = mx.concatenate(states)
    difference = np.abs(np.array(ours) - case.reference["hidden"]).max()
    assert difference < TOLERANCE, f"the backbone's states differ by {difference:.1e}"
    logits = np.array(case.csm.model.frame_logits(ours, mx.array(frames)))
    assert logits.shape == case.reference["logits"].shape
    worst = np.abs(logits - case.reference["logits"]).max(axis=(0, 2))
    assert worst.max() < TOLERANCE, f"logits differ per codebook by {worst}"


def check_greedy(case: Case) -> None:
    """Frame by frame, the end frame included where transformers came to one."""
    context, hidden = case.prompt()
    frames = []
    for _ in range(len(case.reference["greedy"])):
        codes = sample_frame(case.csm.model, hidden, Sampler(GREEDY), mx.random.key(0))
        frames.append(np.array(codes[0]))
        hidden = context.step(codes)
    np.testing.assert_array_equal(frames, case.reference["greedy"])


def check_session(case: Case) -> None:
    """The public way, from sound and text to codes, as far as the guards let random weights babble."""
    session = case.csm.session(sampling=GREEDY)
    for turn in case.turns():
        session.add(turn)
    expected = case.reference["greedy"]
    n_frames = len(expected)
    speech = session.speak(*case.reply(), max_seconds=n_frames / case.csm.codec.config.frame_rate_hz + 1e-6)
    for _ in speech:
        pass
    if is_end(expected[-1]):
        assert speech.stats.stop == "end"
        expected = expected[:-1]
    else:
        assert speech.stats.stop == "length"
    np.testing.assert_array_equal(speech.codes, expected)
