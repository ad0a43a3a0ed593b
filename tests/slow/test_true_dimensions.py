"""csm-1b at its true dimensions with random weights: convert from the transformers layout to q4, load, generate.

`make slow` prints what each step took: about 8 GB of disk, minutes of work. The figures are this machine's.
"""

import itertools
import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.layouts import TOKENIZER
from support.training import python
from support.true_size import csm, folder_bytes, write_random
from tokenizers.pre_tokenizers import ByteLevel

from csm_mlx.config import TransformerConfig
from csm_mlx.stored import preset

pytestmark = pytest.mark.slow

RESIDENT_BYTES = 1.3e9
"""What csm-1b at 4 bits may hold when it is loaded, its codec included."""
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
BACKBONE_ROPE = {**ROPE, "low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
DEPTH_ROPE = {
    **ROPE,
    "low_freq_factor": 0.001953125,
    "high_freq_factor": 0.0078125,
    "original_max_position_embeddings": 16,
}


def layer_shapes(prefix: str, c: TransformerConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.norm.weight": (c.dim,)}
    for i in range(c.n_layers):
        at = f"{prefix}.layers.{i}"
        shapes |= {
            f"{at}.input_layernorm.weight": (c.dim,),
            f"{at}.post_attention_layernorm.weight": (c.dim,),
            f"{at}.self_attn.q_proj.weight": (q, c.dim),
            f"{at}.self_attn.k_proj.weight": (kv, c.dim),
            f"{at}.self_attn.v_proj.weight": (kv, c.dim),
            f"{at}.self_attn.o_proj.weight": (c.dim, q),
            f"{at}.mlp.gate_proj.weight": (c.ffn_dim, c.dim),
            f"{at}.mlp.up_proj.weight": (c.ffn_dim, c.dim),
            f"{at}.mlp.down_proj.weight": (c.dim, c.ffn_dim),
        }
    return shapes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    """csm-1b as `save_pretrained` would write it, its Mimi beside it in our own names."""
    folder = tmp_path_factory.mktemp("csm-1b")
    config = preset("csm-1b")
    csm, depth = config.csm, config.csm.depth
    rows = csm.n_codebooks * csm.audio_vocab_size
    shapes = {
        "embed_text_tokens.weight": (csm.text_vocab_size, csm.backbone.dim),
        "depth_decoder.model.embed_tokens.weight": (rows, csm.backbone.dim),
        "lm_head.weight": (csm.audio_vocab_size, csm.backbone.dim),
        "depth_decoder.model.inputs_embeds_projector.weight": (depth.dim, csm.backbone.dim),
        "depth_decoder.codebooks_head.weight": (csm.n_codebooks - 1, depth.dim, csm.audio_vocab_size),
        **layer_shapes("backbone_model", csm.backbone),
        **layer_shapes("depth_decoder.model", depth),
    }
    write_random(folder / "model.safetensors", shapes)
    from csm_mlx.models.mimi import Mimi

    parameters = tree_flatten(Mimi(config.codec).parameters())
    codec = {name: p.shape for name, p in parameters if isinstance(p, mx.array)}
    write_random(folder / "codec.safetensors", codec)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "csm",
                "rope_parameters": BACKBONE_ROPE,
                "depth_decoder_config": {"rope_parameters": DEPTH_ROPE},
            }
        )
    )
    (folder / "tokenizer.json").write_text(json.dumps(large_tokenizer()))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def large_tokenizer() -> dict:
    """A tokenizer of Llama 3's size, which takes memory too: 128,000 tokens of one to three bytes."""
    letters = sorted(ByteLevel.alphabet())
    pairs = [[a, b] for a in letters for b in letters]
    n_triples = 128_000 - len(letters) - len(pairs)
    triples = list(itertools.islice(itertools.product(letters, repeat=3), n_triples))
    merges = pairs + [split for a, b, c in triples for split in ([a + b, c], [a, b + c])]
    tokens = [*letters, *("".join(token) for token in (*pairs, *triples))]
    special = [{**token, "id": len(tokens) + i} for i, token in enumerate(TOKENIZER["added_tokens"])]
    model = {"type": "BPE", "ignore_merges": True, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    splits = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return TOKENIZER | {"added_tokens": special, "pre_tokenizer": splits, "model": model}


def loaded(folder: Path, dtype: str) -> dict[str, int]:
    """What a fresh process holds with a checkpoint loaded; `arrays` are MLX's."""
    done = python(_LOADED, folder, dtype, timeout_s=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_LOADED = """
import json, sys
import mlx.core as mx
import csm_mlx
from support.memory import resident_bytes

csm = csm_mlx.load(sys.argv[1], dtype=getattr(mx, sys.argv[2]))
json.dump({"resident": resident_bytes(), "arrays": mx.get_active_memory()}, sys.stdout)
"""


@pytest.mark.parametrize("flags", [["-q"], []], ids=["q4", "bfloat16"])
def test_convert_load_and_generate(source: Path, tmp_path: Path, flags: list[str]) -> None:
    out = tmp_path / "csm-1b"
    report, convert_peak = csm("convert", source, out, *flags)
    size = folder_bytes(out)
    print(f"\n{flags or 'bfloat16'}: source {folder_bytes(source) / 1e9:.2f} GB, on disk {size / 1e9:.2f} GB, ", end="")
    print(f"{report['bits_per_weight']:.2f} bits a weight; convert {report['seconds']:.0f} s, ", end="")
    print(f"peak {convert_peak / 1e9:.2f} GB")
    assert convert_peak < size + 2e9
    if flags:
        for dtype in ("bfloat16", "float32"):
            held = loaded(out, dtype)
            print(f"loaded in {dtype} with Mimi and a tokenizer of 128,000: ", end="")
            print(f"{held['resident'] / 1e9:.3f} GB resident, {held['arrays'] / 1e9:.3f} GB of arrays")
            assert held["resident"] < RESIDENT_BYTES
        assert 1.3e9 < size < 1.6e9
        spoken, say_peak = csm("say", "abc", "--model", out, "-o", tmp_path / "out.wav", "--max-seconds", "0.48")
        (sentence,) = spoken["sentences"]
        per_frame = (sentence["work_s"] - sentence["first_audio_s"]) / (spoken["frames"] - 1)
        print(f"load and generate {spoken['frames']} frames: peak {say_peak / 1e9:.2f} GB, prefill ", end="")
        print(
            f"{sentence['prefill_s']:.2f} s, first audio {sentence['first_audio_s']:.2f} s, {per_frame:.2f} s a frame"
        )
        assert spoken["frames"] == 6
        assert say_peak < size + 2e9
    shutil.rmtree(out)
