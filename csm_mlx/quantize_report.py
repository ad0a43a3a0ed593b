"""What a quantization costs: how far its predictions are from the original's, codebook by codebook, on given turns.

Both models are shown the same turns, frame by frame, and asked for each next frame (teacher forcing): the Kullback-
Leibler divergence of their answers, and how often their first choices agree. Both are tighter than listening: a
difference that nobody hears shows.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import csm_mlx
from csm_mlx.checkpoint.source import open_csm
from csm_mlx.config import CsmConfig
from csm_mlx.errors import ConfigError, ContextError
from csm_mlx.frames import Turn, TurnRows, check_codes, text_ids
from csm_mlx.generate.session import Csm
from csm_mlx.models.csm import CsmModel
from csm_mlx.plots import new_figure, save_figure
from csm_mlx.quantize import named_parameters

FRAMES_AT_ONCE = 64
"""Frames whose logits exist at once: 17 MB for csm-1b."""
_ROWS_AT_ONCE = 128

OnFrames = Callable[[str, int, int], None]
"""Called with (which model, frames so far, frames in all)."""


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """Per codebook, the semantic one first."""

    n_frames: int
    """Predicted, end frames included."""
    kl: tuple[float, ...]
    """Mean divergence of the candidate's distribution from the reference's, in nats, at temperature 1."""
    top1_agreement: tuple[float, ...]
    """Share of frames in which both rank the same code first."""
    reference_bytes: int
    candidate_bytes: int
    """Of the model's tensors on disk, without the codec."""
    reference_bits_per_weight: float
    candidate_bits_per_weight: float

    @property
    def mean_kl(self) -> float:
        return float(np.mean(self.kl))

    @property
    def mean_top1_agreement(self) -> float:
        return float(np.mean(self.top1_agreement))

    def to_dict(self) -> dict[str, Any]:
        """JSON-like data, the means included."""
        means = {"mean_kl": self.mean_kl, "mean_top1_agreement": self.mean_top1_agreement}
        return asdict(self) | {"kl": list(self.kl), "top1_agreement": list(self.top1_agreement)} | means


def report(
    reference: str | Path, candidate: str | Path, turns: Sequence[Turn], *, on_frames: OnFrames | None = None
) -> QuantizationReport:
    """Compare the checkpoint `candidate` with `reference` on `turns`, a conversation of which some have sound.

    The two are loaded one after the other, so that memory need hold one. Turns are cut into conversations where the
    positions end. Raises ConfigError when the two are not of one architecture or no turn has sound, and ContextError
    for a turn that alone is too long.
    """
    first = csm_mlx.load(reference)
    rows = [_rows(first, turn) for turn in turns]
    n_frames = sum(len(r.codes) + 1 for r in rows if r.codes is not None)
    if not n_frames:
        raise ConfigError("none of the turns has sound to predict; give at least one with pcm or codes")
    config = first.config.csm
    expected = []
    for logits in teacher_forced(first.model, rows):
        expected.append(np.asarray(_log_softmax(logits)))
        _tell(on_frames, "reference", expected, n_frames)
    del first
    gc.collect()  # the model's memory, before the next one takes its own
    mx.clear_cache()
    second = csm_mlx.load(candidate)
    other = second.config.csm
    for name in ("text_vocab_size", "max_positions"):
        if (given := getattr(other, name)) != (wanted := getattr(config, name)):
            raise ConfigError(
                f"{candidate} has {name} {given}, {reference} has {wanted}; give a checkpoint and its own quantization"
            )
    if (other.n_codebooks, other.codebook_size) != (config.n_codebooks, config.codebook_size):
        raise ConfigError(
            f"{candidate} has {other.n_codebooks} codebooks of {other.codebook_size}, {reference} "
            f"has {config.n_codebooks} of {config.codebook_size}; give a checkpoint and its own quantization"
        )
    kl, agreed, done = np.zeros(config.n_codebooks), np.zeros(config.n_codebooks), []
    for logits, p_log in zip(teacher_forced(second.model, rows), expected, strict=True):
        q_log = np.asarray(_log_softmax(logits))
        kl += (np.exp(p_log) * (p_log - q_log)).sum(axis=(0, 2), dtype=np.float64)
        agreed += (p_log.argmax(-1) == q_log.argmax(-1)).sum(axis=0)
        done.append(q_log[:, :0])
        _tell(on_frames, "candidate", done, n_frames)
    n = sum(map(len, expected))
    sizes = {which: _size(path, config) for which, path in (("reference", reference), ("candidate", candidate))}
    return QuantizationReport(
        n_frames=n,
        kl=tuple(float(max(0.0, x)) for x in kl / n),  # rounding can take equal ones below 0
        top1_agreement=tuple(float(x) for x in agreed / n),
        reference_bytes=sizes["reference"][0],
        candidate_bytes=sizes["candidate"][0],
        reference_bits_per_weight=sizes["reference"][1],
        candidate_bits_per_weight=sizes["candidate"][1],
    )


def _tell(on_frames: OnFrames | None, which: str, chunks: list[np.ndarray], total: int) -> None:
    if on_frames is not None:
        on_frames(which, sum(map(len, chunks)), total)


def _size(path: str | Path, config: CsmConfig) -> tuple[int, float]:
    """(bytes on disk, bits per weight) of a model without its codec."""
    n_bytes = sum(tensor.n_bytes for tensor in open_csm(path).model.values())
    n_weights = sum(p.size for p in named_parameters(CsmModel(config)).values())
    return n_bytes, 8 * n_bytes / n_weights


def _rows(csm: Csm, turn: Turn) -> TurnRows:
    config = csm.config.csm
    codes = turn.codes
    if codes is None and turn.pcm is not None:
        codes = csm.encode(turn.pcm)
    ids = text_ids(turn.text, turn.speaker, csm.tokenizer, config) if turn.text.strip() else ()
    rows = TurnRows(ids, None if codes is None else check_codes(codes, config))
    if rows.n_rows > config.max_positions:
        raise ContextError(
            f"the turn {turn.text[:30]!r} takes {rows.n_rows} positions, the model has {config.max_positions}; "
            "shorten it"
        )
    return rows


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def teacher_forced(model: CsmModel, turns: Sequence[TurnRows]) -> Iterator[mx.array]:
    """Logits (n, n_codebooks, codebook_size) float32 of all frames of `turns`, end frames included, in order.

    Each frame is predicted from the true ones before it. A turn begins a new conversation where the positions run
    out; a frame with nothing before it is left out.
    """
    group: list[TurnRows] = []
    for turn in turns:
        if sum(t.n_rows for t in [*group, turn]) > model.config.max_positions:
            yield from _conversation(model, group)
            group = []
        group.append(turn)
    yield from _conversation(model, group)


def _conversation(model: CsmModel, turns: list[TurnRows]) -> Iterator[mx.array]:
    n_rows = sum(turn.n_rows for turn in turns)
    if not n_rows:
        return
    state, hidden = model.backbone.make_state(1, model.dtype, n_rows), []
    places, frames, at = [], [], 0
    for turn in turns:
        parts = [model.embed_text(mx.array([turn.text_ids], mx.int32))] if turn.text_ids else []
        at += len(turn.text_ids)
        if turn.codes is not None:
            codes = turn.audio_rows()
            for start in range(0, len(codes), _ROWS_AT_ONCE):
                parts.append(model.embed_audio(mx.array(codes[None, start : start + _ROWS_AT_ONCE])))
            places += range(at - 1, at - 1 + len(codes))
            frames.append(codes)
            at += len(codes)
        for part in parts:
            y, state = model.backbone(part, state)
            hidden.append(y[0])
            mx.eval(y, state)
    if not frames:
        return
    states, codes = mx.concatenate(hidden), np.concatenate(frames)
    first = 1 if places[0] < 0 else 0  # a conversation that begins with sound
    for start in range(first, len(places), FRAMES_AT_ONCE):
        chosen = mx.array(places[start : start + FRAMES_AT_ONCE])
        truth = mx.array(codes[start : start + FRAMES_AT_ONCE])
        yield model.frame_logits(states[chosen], truth)[..., : model.config.codebook_size]


def plot(result: QuantizationReport, path: str | Path, title: str = "") -> None:
    """A PNG of divergence and agreement by codebook; needs matplotlib (`pip install 'csm-mlx[plots]'`)."""
    figure = new_figure(9, 6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    codebooks = range(len(result.kl))
    top.bar(codebooks, result.kl, color="#4062bb")
    top.set_ylabel("KL divergence (nats)")
    bottom.bar(codebooks, [100 * share for share in result.top1_agreement], color="#59c3c3")
    bottom.set_ylabel("same first choice (%)")
    bottom.set_ylim(0, 100)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlabel("codebook (0 is the semantic one)")
    bits = f"{result.reference_bits_per_weight:.2f} to {result.candidate_bits_per_weight:.2f} bits per weight"
    size = f"{result.reference_bytes / 1e6:.1f} to {result.candidate_bytes / 1e6:.1f} MB"
    figure.suptitle(f"{title + ': ' if title else ''}{bits}, {size}, {result.n_frames} frames")
    save_figure(figure, path)
