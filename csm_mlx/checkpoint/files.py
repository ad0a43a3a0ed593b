"""The names of files: the one home of every file name that a checkpoint folder or the Hub can hold."""

from pathlib import Path

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""What transformers says of the sound that a model takes, in its newer and its older file."""
MODEL = "model.safetensors"
CODEC = "codec.safetensors"
TOKENIZER = "tokenizer.json"
SPM = "tokenizer.model"
"""In its place for Kyutai's language models: sentencepiece's."""
VOICES = "voices"
README = "README.md"

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapters.safetensors"
"""Both as mlx-lm names them; what is in them is ours."""

OWN_FILES = frozenset({CONFIG, MODEL, CODEC, TOKENIZER, SPM, VOICES, README, ADAPTER_CONFIG, ADAPTER_WEIGHTS})
"""All that a folder in our own formats holds: `--force` replaces such a folder and no other."""

CODES_CACHE = ".csm-cache"
"""Codes of the clips that were trained on, beside their manifest."""
TRAINING_SUFFIX = ".training"
"""Beside what a training makes: a folder of what only its continuation needs."""
TRAINING_STATE = "state.safetensors"
TRAINING_CURVES = "curves.png"

SPM_SUFFIX = ".model"
WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
"""Weights that Python's pickle wrote. Reading one can run any program hidden in it."""
OTHER_WEIGHTS_SUFFIXES = frozenset({".gguf", ".npz", ".onnx", ".h5", ".msgpack"})

PROMPTS = "prompts"
"""Sesame's folder of prompt clips."""

MIMI_REPO = "kyutai/moshiko-pytorch-bf16"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_REPO = "unsloth/Llama-3.2-1B"
"""An open mirror of meta-llama/Llama-3.2-1B, which is gated."""
SPM_REPOS = {
    32000: (MIMI_REPO, "tokenizer_spm_32k_3.model"),
    8000: ("kyutai/stt-1b-en_fr", "tokenizer_en_fr_audio_8000.model"),
    4000: ("kyutai/stt-2.6b-en", "tokenizer_en_audio_4000.model"),
}
"""Where the sentencepiece models of so many ids are: of Moshi and of both speech-to-text models."""

OPEN_MIRRORS = {
    "sesame/csm-1b": "unsloth/csm-1b",
    "meta-llama/Llama-3.2-1B": TOKENIZER_REPO,
}
"""Gated repositories and where the same files are open."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name; hidden ones (macOS writes `._model.safetensors`) left out."""
    return sorted(p for p in folder.glob(f"*{WEIGHTS_SUFFIX}") if p.is_file() and not p.name.startswith("."))
