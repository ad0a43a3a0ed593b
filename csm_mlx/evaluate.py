"""How well a checkpoint speaks: it says a list of sentences, and a recognizer writes down what it hears."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csm_mlx.audio import resample
from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError, CsmError, GenerationError
from csm_mlx.frames import Turn
from csm_mlx.generate.session import Csm
from csm_mlx.measure import pitch_hz
from csm_mlx.recognize import Recognizer

if TYPE_CHECKING:
    from jiwer import AlignmentChunk

DNSMOS_RATE_HZ = 16_000
_MOS = {"overall": "ovrl_mos", "speech": "sig_mos", "background": "bak_mos"}

Judge = Callable[[np.ndarray, int], dict[str, float]]
"""Quality of (n_samples,) sound at a rate in Hz, by name."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sentence, said and heard."""

    text: str
    heard: str
    n_words: int
    n_wrong: int
    """Words substituted, left out or put in, after whisper's own normalization of English on both sides."""
    sound_s: float
    work_s: float
    first_audio_s: float | None
    early_end: bool
    """The last words were not heard."""
    missing_end: bool
    """It did not stop by itself but at a limit or a guard, or never began."""
    pitch_hz: float | None
    """Median fundamental frequency; None where nothing was voiced."""
    quality: dict[str, float] | None
    """DNSMOS, 1 to 5: overall, speech, background."""


@dataclass(frozen=True)
class Evaluation:
    """All of them; rates are over all words, not means of rates."""

    utterances: tuple[Utterance, ...]

    @property
    def word_error_rate(self) -> float:
        return sum(u.n_wrong for u in self.utterances) / sum(u.n_words for u in self.utterances)

    @property
    def words_per_minute(self) -> float | None:
        sound_s = sum(u.sound_s for u in self.utterances)
        return 60 * sum(u.n_words for u in self.utterances) / sound_s if sound_s else None

    @property
    def real_time_factor(self) -> float | None:
        sound_s = sum(u.sound_s for u in self.utterances)
        return sum(u.work_s for u in self.utterances) / sound_s if sound_s else None

    @property
    def n_early_ends(self) -> int:
        return sum(u.early_end for u in self.utterances)

    @property
    def n_missing_ends(self) -> int:
        return sum(u.missing_end for u in self.utterances)

    @property
    def pitch_hz(self) -> float | None:
        """Median of the utterances' own."""
        pitches = [u.pitch_hz for u in self.utterances if u.pitch_hz is not None]
        return float(np.median(pitches)) if pitches else None

    @property
    def quality(self) -> dict[str, float] | None:
        """Mean DNSMOS of those that made a sound."""
        judged = [u.quality for u in self.utterances if u.quality is not None]
        return {name: float(np.mean([q[name] for q in judged])) for name in judged[0]} if judged else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-like data."""
        rates = ("word_error_rate", "words_per_minute", "real_time_factor")
        figures = {
            name: getattr(self, name) for name in (*rates, "n_early_ends", "n_missing_ends", "pitch_hz", "quality")
        }
        return {"n_sentences": len(self.utterances), **figures, "utterances": [asdict(u) for u in self.utterances]}


def evaluate(
    csm: Csm,
    sentences: Sequence[str],
    recognizer: Recognizer,
    *,
    speaker: int = 0,
    voice: Turn | None = None,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    judge: Judge | None = None,
) -> Iterator[Utterance]:
    """Says each sentence in a fresh session and listens to it, one by one; put them into an `Evaluation`.

    voice: the reference turn that each session begins with. judge: see `dnsmos`. ConfigError when a sentence is empty.
    """
    for number, sentence in enumerate(sentences, 1):
        if not any(map(str.isalnum, sentence)):
            raise ConfigError(f"sentence {number} of {len(sentences)} is {sentence!r:.60}, expected at least one word")
    for sentence in sentences:
        session = csm.session(seed=seed, sampling=sampling)
        if voice is not None:
            session.add(voice, reference=True)
        speech = session.speak(sentence, speaker)
        try:
            pieces = list(speech)
        except GenerationError:
            pieces = []  # it would not begin: every word is wrong
        pcm = np.concatenate([np.zeros(0, np.float32), *pieces])
        heard = recognizer.transcribe(pcm, csm.sample_rate_hz) if len(pcm) else ""
        n_words, n_wrong, early = compare(sentence, heard)
        stats = speech.stats
        yield Utterance(
            text=sentence,
            heard=heard,
            n_words=n_words,
            n_wrong=n_wrong,
            sound_s=stats.sound_s,
            work_s=stats.work_s,
            first_audio_s=stats.first_audio_s,
            early_end=early,
            missing_end=stats.stop != "end",
            pitch_hz=pitch_hz(pcm, csm.sample_rate_hz),
            quality=judge(pcm, csm.sample_rate_hz) if judge and len(pcm) else None,
        )


def _words(text: str) -> str:
    """Lower case, no punctuation, numbers and spellings made one: the normalization of the whisper paper."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise CsmError("evaluation needs whisper-normalizer and jiwer: pip install 'csm-mlx[whisper]'") from None
    return EnglishTextNormalizer()(text).strip()


def compare(text: str, heard: str) -> tuple[int, int, bool]:
    """(words, wrong words, whether the last words are missing) of what was `heard` for `text`."""
    import jiwer

    said, noted = _words(text), _words(heard)
    n_words = len(said.split())
    if not noted:
        return n_words, n_words, True
    result = jiwer.process_words(said, noted)
    last: AlignmentChunk = result.alignments[0][-1]
    return n_words, result.substitutions + result.deletions + result.insertions, last.type == "delete"


def dnsmos(pcm: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
    """Microsoft's DNSMOS P.835 (`speechmos`): overall, speech and background, 1 to 5. A `Judge`."""
    try:
        model = import_module("speechmos.dnsmos")  # by name: the type checker need not have this extra
    except ImportError:
        raise CsmError("speech quality needs speechmos: pip install 'csm-mlx[quality]'") from None
    sound = np.clip(resample(pcm, sample_rate_hz, DNSMOS_RATE_HZ), -1, 1)
    scores = model.run(sound, sr=DNSMOS_RATE_HZ)
    return {name: float(scores[theirs]) for name, theirs in _MOS.items()}


def plot(evaluation: Evaluation, path: str | Path, title: str = "") -> None:
    """A PNG: word errors sentence by sentence, and sound against words; needs matplotlib (extra `plots`)."""
    from csm_mlx.plots import new_figure, save_figure

    figure = new_figure(10, 6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    worst = sorted(evaluation.utterances, key=lambda u: u.n_wrong / u.n_words)
    rates = [100 * u.n_wrong / u.n_words for u in worst]
    left.barh(range(len(worst)), rates, color=["#c44536" if u.missing_end else "#4062bb" for u in worst])
    left.set_xlabel("wrong words (%); red did not end by itself")
    left.set_ylabel("sentence, best below")
    left.axvline(100 * evaluation.word_error_rate, color="black", linewidth=1, linestyle="--")
    right.scatter([u.n_words for u in worst], [u.sound_s for u in worst], c="#4062bb", s=14)
    right.set_xlabel("words")
    right.set_ylabel("sound (s)")
    quality = evaluation.quality
    judged = "".join(f", {name} {score:.2f}" for name, score in (quality or {}).items())
    figure.suptitle(
        f"{title + ': ' if title else ''}word error rate {100 * evaluation.word_error_rate:.1f} % "
        f"of {len(worst)} sentences{judged}"
    )
    save_figure(figure, path)
