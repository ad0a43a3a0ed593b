"""Mimi, Kyutai's neural codec (Défossez et al. 2024, https://arxiv.org/abs/2410.00037): 24 kHz speech, 12.5 frames
a second, one semantic and up to 31 acoustic codes per frame.

The offline call is the streaming call from a fresh state. Attention sees its window and no future, in a chunk too.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from csm_mlx.config import MimiConfig
from csm_mlx.errors import AudioError
from csm_mlx.models.seanet import SeaNetDecoder, SeaNetEncoder
from csm_mlx.nn.cache import CacheState
from csm_mlx.nn.conv import CausalConv1d, DepthwiseUpsample
from csm_mlx.nn.quantizer import SplitQuantizer
from csm_mlx.nn.transformer import Transformer

State = dict[str, Any]
"""A tree of arrays. Keep it to go on, copy it by keeping it, drop it to start again."""

CHUNK_FRAMES = 64
"""Frames per pass of a long call (5 s): memory stays bounded however long the sound is."""

STREAM_FRAMES = 8
"""Frames that a stream takes in one step of its transformers, whatever it began with."""


class Mimi(nn.Module):
    """Encoder, quantizer and decoder; one model serves many streams, whose states belong to the caller."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.encoder = SeaNetEncoder(config)
        self.encoder_transformer = Transformer(config.transformer)
        self.decoder_transformer = Transformer(config.transformer)
        self.decoder = SeaNetDecoder(config)
        self._resamples = config.downsample_stride > 1
        if self._resamples:
            stride = config.downsample_stride
            self.downsample = CausalConv1d(
                config.dim, config.dim, 2 * stride, stride=stride, bias=False, edge_padding=True
            )
            self.upsample = DepthwiseUpsample(config.dim, stride)
        self.quantizer = SplitQuantizer(
            config.dim, config.codebook_dim, config.codebook_size, config.n_codebooks, config.n_semantic_codebooks
        )
        self._config = config

    @property
    def config(self) -> MimiConfig:
        return self._config

    @property
    def _dtype(self) -> mx.Dtype:
        return self.encoder.init_conv.weight.dtype

    def _make_encoder_state(self, batch: int, n_frames: int) -> State:
        state = {
            "seanet": self.encoder.make_state(batch, self._dtype),
            "transformer": self._make_transformer_state(self.encoder_transformer, batch, n_frames),
        }
        if self._resamples:
            state["downsample"] = self.downsample.make_state(batch, self._dtype)
        return state

    def _make_decoder_state(self, batch: int, n_frames: int) -> State:
        state = {
            "transformer": self._make_transformer_state(self.decoder_transformer, batch, n_frames),
            "seanet": self.decoder.make_state(batch, self._dtype),
        }
        if self._resamples:
            state["upsample"] = self.upsample.make_state(batch, self._dtype)
        return state

    def _make_transformer_state(self, transformer: Transformer, batch: int, n_frames: int) -> CacheState:
        """A ring for calls like the first one, of `n_frames`, and for longer ones in several steps: all of it is
        attended to, so that it should be no larger."""
        transformer.prepare()
        n_steps = min(max(n_frames, STREAM_FRAMES), CHUNK_FRAMES) * self.config.downsample_stride
        return transformer.make_state(batch, self._dtype, (self.config.transformer.window or 0) + n_steps - 1)

    def encode(
        self, pcm: mx.array, state: State | None = None, *, n_codebooks: int | None = None
    ) -> tuple[mx.array, State]:
        """Sound to codes.

        pcm: (B, n_samples, 1) at `config.sample_rate_hz`, in [-1, 1].
        state: None begins a stream and pads the end with silence to whole frames (a clip); a running stream takes
            multiples of `config.frame_size` samples.
        n_codebooks: how many to make, all of them by default.

        Returns codes (B, T, n_codebooks) int32 and the state after them. Raises AudioError for another shape.
        """
        frame_size, n_codebooks = self.config.frame_size, self._check_codebooks(n_codebooks)
        if pcm.ndim != 3 or pcm.shape[2] != 1 or pcm.shape[1] == 0:
            raise AudioError(f"pcm has shape {pcm.shape}, expected (batch, n_samples, 1) with at least one sample")
        if not mx.issubdtype(pcm.dtype, mx.floating):
            raise AudioError(f"pcm is {pcm.dtype}, expected floats in [-1, 1]; divide 16-bit samples by 32768")
        missing = -pcm.shape[1] % frame_size
        if missing and state is not None:
            raise AudioError(
                f"a running stream was given {pcm.shape[1]} samples, expected a multiple of {frame_size} "
                f"({frame_size / self.config.sample_rate_hz * 1000:g} ms); pad its end with audio.pad_to_frames"
            )
        pcm = mx.pad(pcm.astype(self._dtype), [(0, 0), (0, missing), (0, 0)])

        def encode_chunk(x: mx.array, state: State) -> tuple[mx.array, State]:
            new: State = {}
            x, new["seanet"] = self.encoder(x, state["seanet"])
            x, new["transformer"] = self.encoder_transformer(x, state["transformer"])
            if self._resamples:
                x, new["downsample"] = self.downsample(x, state["downsample"])
            return self.quantizer.encode(x, n_codebooks), new

        state = state or self._make_encoder_state(pcm.shape[0], pcm.shape[1] // frame_size)
        return _chunked(encode_chunk, pcm, frame_size, state)

    def decode(self, codes: mx.array, state: State | None = None) -> tuple[mx.array, State]:
        """Codes to sound.

        codes: (B, T, K) of the first K codebooks, 1 <= K <= `config.n_codebooks`, each in [0, `codebook_size`):
            the caller sees to that, since codes in the graph cannot be checked without waiting for them.
        state: None begins a stream.

        Returns pcm (B, T * frame_size, 1), not clipped, and the state after it. Raises AudioError for another shape.
        """
        if codes.ndim != 3 or codes.shape[1] == 0:
            raise AudioError(
                f"codes have shape {codes.shape}, expected (batch, n_frames, n_codebooks), one frame or more"
            )
        self._check_codebooks(codes.shape[2])

        def decode_chunk(codes: mx.array, state: State) -> tuple[mx.array, State]:
            new: State = {}
            x = self.quantizer.decode(codes)
            if self._resamples:
                x, new["upsample"] = self.upsample(x, state["upsample"])
            x, new["transformer"] = self.decoder_transformer(x, state["transformer"])
            x, new["seanet"] = self.decoder(x, state["seanet"])
            return x, new

        return _chunked(decode_chunk, codes, 1, state or self._make_decoder_state(*codes.shape[:2]))

    def _check_codebooks(self, n_codebooks: int | None) -> int:
        if n_codebooks is None:
            return self.config.n_codebooks
        if not 1 <= n_codebooks <= self.config.n_codebooks:
            raise AudioError(f"{n_codebooks} codebooks were asked for, this codec has 1 to {self.config.n_codebooks}")
        return n_codebooks


def _chunked(
    run: Callable[[mx.array, State], tuple[mx.array, State]], x: mx.array, frame: int, state: State
) -> tuple[mx.array, State]:
    """`run` over x (B, T, …) in chunks of `CHUNK_FRAMES` frames of `frame` steps, evaluated one by one if several."""
    chunk, outputs = CHUNK_FRAMES * frame, []
    for start in range(0, x.shape[1], chunk):
        y, state = run(x[:, start : start + chunk], state)
        if x.shape[1] > frame:  # a state is slices of what was computed, and would keep all of it
            state = tree_map(lambda leaf: mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf, state)
        outputs.append(y)
        if x.shape[1] > chunk:
            mx.eval(y, state)
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), state
