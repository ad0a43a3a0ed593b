"""The one exception tree. Every message says what was given, what was expected and what to do next."""


class CsmError(Exception):
    """Anything this package raises on purpose; the CLI prints it as one line and exits 1."""


class ConfigError(CsmError):
    """A configuration with unknown, missing or contradictory fields."""


class CheckpointError(CsmError):
    """A checkpoint that cannot be read, recognised or written."""


class HubError(CheckpointError):
    """A checkpoint that could not be fetched: no network, gated, unknown, or offline and not in the cache."""


class QuantizationError(CsmError):
    """A quantization that the weights or MLX do not allow."""


class AudioError(CsmError):
    """Sound that cannot be read, written or encoded."""


class DeviceError(CsmError):
    """A microphone or loudspeaker that is missing or refuses."""


class TokenizerError(CsmError):
    """A tokenizer file that is missing, broken or without the tokens that CSM needs."""


class ContextError(CsmError):
    """A prompt or a turn for which the model has no positions left."""


class GenerationError(CsmError):
    """Speech that the model would not produce, such as an end frame before the first sound."""


class VoiceError(CsmError):
    """A voice that is unknown, misnamed or already there."""


class ManifestError(CsmError):
    """Examples to train on that are not as they should be: one line per problem."""


class TrainingError(CsmError):
    """A training that cannot go on, or cannot be resumed."""
