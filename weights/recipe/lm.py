"""The language model: a tiny CsmForConditionalGeneration of transformers, and a forward pass that shows attention."""

import torch
from codec import CODEBOOK_SIZE, codec_config
from lm_data import N_CODEBOOKS, TEXT_VOCAB, Batch
from torch import Tensor
from torch.nn import functional as F
from transformers import CsmConfig, CsmForConditionalGeneration
from transformers.models.csm.modeling_csm import apply_rotary_pos_emb

AUDIO_VOCAB = CODEBOOK_SIZE + 3
MAX_POSITIONS = 512
"""As many as `train_lm.py --length`: a conversation forgets its oldest turns before it outgrows the model."""
GUIDED = ((1, 0), (2, 0))
"""(layer, head) pairs whose attention is led to the letter being spoken."""


def lm_config() -> CsmConfig:
    def rope(original: int) -> dict:
        return {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "high_freq_factor": 0.5 if original > 4 else 0.0078125,
            "low_freq_factor": 0.125 if original > 4 else 0.001953125,
            "original_max_position_embeddings": original,
        }

    return CsmConfig(
        num_codebooks=N_CODEBOOKS,
        vocab_size=AUDIO_VOCAB,
        text_vocab_size=TEXT_VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters=rope(1024),
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        audio_token_id=3,
        audio_eos_token_id=4,
        codebook_eos_token_id=0,
        codebook_pad_token_id=AUDIO_VOCAB - 1,
        tie_codebooks_embeddings=True,
        depth_decoder_config={
            "num_codebooks": N_CODEBOOKS,
            "backbone_hidden_size": 256,
            "vocab_size": AUDIO_VOCAB,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": N_CODEBOOKS + 1,
            "rope_parameters": rope(2),
        },
        codec_config=codec_config().to_dict(),
    )


def build() -> CsmForConditionalGeneration:
    """A fresh model with its embedding tables tied; its codec is filled at export."""
    model = CsmForConditionalGeneration(lm_config())
    model.tie_weights()
    return model


def attend(layer, x: Tensor, rotary, cache: list | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """One block of backbone or depth decoder with explicit attention, which on a CPU has the faster backward pass.

    x (B, S, D); cache: [keys, values] of earlier positions, replaced in place. Returns x and, if `keep`, the attention
    (B, heads, S, all positions).
    """
    a, (b, s, _) = layer.self_attn, x.shape
    h = layer.input_layernorm(x)
    q, k, v = (p(h).view(b, s, -1, a.head_dim).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    if cache is not None:
        if cache:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache[:] = [k, v]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3)).float() * a.scaling
    n = k.shape[2]
    future = torch.ones(s, n, dtype=torch.bool, device=x.device).triu(n - s + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, s, -1)
    x = x + a.o_proj(mixed)
    return x + layer.mlp(layer.post_attention_layernorm(x)), weights if keep else None


def embed(model, batch_text: Tensor, codes: Tensor, is_sound: Tensor) -> Tensor:
    """Rows of text and sound to (B, S, D)."""
    sound = model.backbone_model.embed_tokens(codes)
    return torch.where(is_sound[..., None], sound, model.embed_text_tokens(batch_text))


def backbone(model, x: Tensor, caches: list[list] | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    """(B, S, D) -> normed hidden states and the guided layers' attention."""
    past = caches[0][0].shape[2] if caches and caches[0] else 0
    rotary = model.backbone_model.rotary_emb(x, torch.arange(past, past + x.shape[1], device=x.device)[None])
    kept, guided = {}, {layer for layer, _ in GUIDED}
    for i, layer in enumerate(model.backbone_model.layers):
        keep = caches is None and i in guided
        x, weights = attend(layer, x, rotary, caches[i] if caches else None, keep)
        if weights is not None:
            kept[i] = weights
    return model.backbone_model.norm(x), kept


def depth_logits(model, hidden: Tensor, codes: Tensor) -> Tensor:
    """Logits of codebooks 1.. for N frames.

    hidden (N, D) of the backbone; codes (N, k) the k first true codes; returns (N, k, AUDIO_VOCAB) for codebooks 1..k.
    """
    depth = model.depth_decoder.model
    offsets = torch.arange(codes.shape[1], device=codes.device) * AUDIO_VOCAB
    x = torch.cat([hidden[:, None], depth.embed_tokens(codes + offsets)], 1)
    x = depth.inputs_embeds_projector(x)
    rotary = depth.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
    for layer in depth.layers:
        x, _ = attend(layer, x, rotary, None, False)
    x = depth.norm(x)[:, 1:]
    return torch.einsum("nkd,kdv->nkv", x, model.depth_decoder.codebooks_head.weight[: x.shape[1]])


def guidance_loss(attention: dict[int, Tensor], letters: Tensor, width: float = 1.3) -> Tensor:
    """Mean of -log of the attention that falls, weighted by a Gaussian, around the letter being spoken."""
    rows, at = (letters >= 0).nonzero(as_tuple=True)
    target = letters[rows, at]
    positions = torch.arange(letters.shape[1], device=letters.device)
    near = torch.exp(-((positions[None] - target[:, None]) ** 2) / (2 * width**2))
    parts = [-((attention[layer][rows, head, at] * near).sum(-1) + 1e-4).log().mean() for layer, head in GUIDED]
    return torch.stack(parts).mean()


def losses(model, batch: Batch, inputs: Tensor, depth_part: float) -> dict[str, Tensor]:
    """Cross-entropies of codebook 0 and of the others (on a random part of the frames), and the guidance loss."""
    hidden, attention = backbone(model, embed(model, batch.text_ids, inputs, batch.is_sound))
    chosen = batch.targets[..., 0] >= 0
    states, targets = hidden[chosen], batch.targets[chosen]
    logits = model.lm_head(states).float()
    some = torch.rand(len(targets), device=targets.device) < depth_part
    deeper = depth_logits(model, states[some], targets[some][:, :-1]).float()
    return {
        "c0": F.cross_entropy(logits, targets[:, 0]),
        "depth": F.cross_entropy(deeper.flatten(0, 1), targets[some][:, 1:].flatten()),
        "guidance": guidance_loss(attention, batch.letters),
        "accuracy": (logits.argmax(-1) == targets[:, 0]).float().mean(),
    }


@torch.no_grad()
def speak(model, text_ids: list[list[int]], max_frames: int = 90, temperature: float = 0.0) -> list[Tensor]:
    """Free-running codes (n_frames, K) for several prompts of any lengths, one by one batch of equal lengths.

    Codes past the codec's are never drawn. An utterance that does not end is cut at `max_frames`.
    """
    results: list[Tensor] = [torch.empty(0)] * len(text_ids)
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(text_ids):
        by_length.setdefault(len(ids), []).append(i)
    device = next(model.parameters()).device

    def draw(logits: Tensor) -> Tensor:
        logits = logits[..., :CODEBOOK_SIZE].float()
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]

    for members in by_length.values():
        caches: list[list] = [[] for _ in model.backbone_model.layers]
        x = model.embed_text_tokens(torch.tensor([text_ids[i] for i in members], device=device))
        frames = []
        for _ in range(max_frames):
            hidden, _ = backbone(model, x, caches)
            codes = draw(model.lm_head(hidden[:, -1]))[:, None]
            while codes.shape[1] < N_CODEBOOKS:
                codes = torch.cat([codes, draw(depth_logits(model, hidden[:, -1], codes)[:, -1])[:, None]], 1)
            frames.append(codes)
            if (torch.stack(frames)[:, :, 0] == 0).any(0).all():
                break
            x = model.backbone_model.embed_tokens(codes[:, None])
        spoken = torch.stack(frames, 1)
        for row, i in enumerate(members):
            ended = (spoken[row, :, 0] == 0).nonzero()
            results[i] = spoken[row, : int(ended[0]) if len(ended) else max_frames]
    return results
