"""Smart Turn v3, where its file is there: from how it sounded, has the user finished?

A Whisper encoder with one output (BSD-2, https://github.com/pipecat-ai/smart-turn): `input_features` (1, 80, 800), the
log-mel of the last 8 s, to a probability; its output is called `logits` and yet has the sigmoid behind it.
"""

import os
from pathlib import Path

import numpy as np

from csm_mlx.audio import resample
from csm_mlx.errors import CsmError
from csm_mlx_app import places
from csm_mlx_app.sound.device import RATE_HZ

ENVIRONMENT = "CSM_SMART_TURN"

_MODEL_RATE_HZ = 16_000
_MODEL_SAMPLES = 8 * _MODEL_RATE_HZ
_INPUT = "input_features"
_SHAPE = (80, 800)
"""Mel bands and frames of 10 ms."""
_NORM_EPSILON = 1e-7


def find(path: Path | None = None) -> Path | None:
    """The file given, else that of `CSM_SMART_TURN`, else the one in its place, if it is there."""
    if path is None and (named := os.environ.get(ENVIRONMENT)):
        path = Path(named).expanduser()
    if path is None:
        return places.smart_turn() if places.smart_turn().is_file() else None
    if not path.is_file():
        raise CsmError(
            f"no Smart Turn model at {path}; expected smart-turn-v3.2-cpu.onnx of "
            "https://huggingface.co/pipecat-ai/smart-turn-v3"
        )
    return path


class SmartTurn:
    """The model in `path`, on one thread of the CPU; `CsmError` when it is not one of Smart Turn v3's."""

    def __init__(self, path: Path):
        try:
            import onnxruntime
            from faster_whisper.feature_extractor import FeatureExtractor
        except ImportError:
            raise CsmError("Smart Turn needs onnxruntime and faster-whisper: pip install 'csm-mlx[whisper]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise CsmError(f"cannot load Smart Turn from {path}: {str(error).splitlines()[0]}") from None
        inputs = {each.name: tuple(each.shape[1:]) for each in self._session.get_inputs()}
        if inputs != {_INPUT: _SHAPE}:
            raise CsmError(f"{path} takes {inputs}; expected {_INPUT} of shape (1, 80, 800), as Smart Turn v3 has it")
        self._mel = FeatureExtractor()

    def probability(self, pcm: np.ndarray) -> float:
        """That the user has finished after `pcm` (n_samples,) at 24 kHz, of which the last 8 s count."""
        features = self._features(resample(pcm, RATE_HZ, _MODEL_RATE_HZ)[-_MODEL_SAMPLES:])
        (output, *_) = self._session.run(None, {_INPUT: features[None]})
        return float(np.asarray(output).reshape(-1)[0])

    def _features(self, heard: np.ndarray) -> np.ndarray:
        """Whisper's log-mel of normalized sound, silence before it: float32 (80, 800)."""
        sound = np.pad(heard, (_MODEL_SAMPLES - len(heard), 0)).astype(np.float32)
        sound = (sound - sound.mean()) / np.sqrt(sound.var() + _NORM_EPSILON)
        return self._mel(sound, padding=0).astype(np.float32)
