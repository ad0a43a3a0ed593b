"""Residual vector quantization, and Mimi's split of it into semantic and acoustic halves."""

import mlx.core as mx
import mlx.nn as nn


class ResidualQuantizer(nn.Module):
    """A chain of codebooks, each quantizing what the ones before it left over, in a projected space."""

    def __init__(self, dim: int, codebook_dim: int, codebook_size: int, n_codebooks: int):
        super().__init__()
        self.input_proj = nn.Linear(dim, codebook_dim, bias=False)
        self.output_proj = nn.Linear(codebook_dim, dim, bias=False)
        self.codebooks = mx.random.normal((n_codebooks, codebook_size, codebook_dim))
        self._norms: tuple[mx.array, mx.array] | None = None

    def _half_norms(self) -> mx.array:
        """|c|² / 2 of every centroid, (n_codebooks, codebook_size), made once per set of codebooks."""
        if self._norms is None or self._norms[0] is not self.codebooks:
            self._norms = (self.codebooks, 0.5 * mx.square(self.codebooks).sum(-1))
        return self._norms[1]

    def encode(self, x: mx.array, n_codebooks: int) -> mx.array:
        """x (B, T, dim); codes (B, T, n_codebooks) int32 of the nearest centroids, residual after residual."""
        residual, codes, half_norms = self.input_proj(x), [], self._half_norms()
        for k in range(n_codebooks):
            # |x - c|² / 2 without the term that all centroids share.
            code = mx.argmin(half_norms[k] - residual @ self.codebooks[k].T, axis=-1)
            residual = residual - self.codebooks[k][code]
            codes.append(code.astype(mx.int32))
        return mx.stack(codes, axis=-1)

    def decode(self, codes: mx.array) -> mx.array:
        """codes (B, T, n) of the first n codebooks; their sum, projected back: (B, T, dim)."""
        total = self.codebooks[0][codes[..., 0]]
        for k in range(1, codes.shape[-1]):
            total = total + self.codebooks[k][codes[..., k]]
        return self.output_proj(total)


class SplitQuantizer(nn.Module):
    """Mimi's pair: both halves quantize the same latent, and their outputs add up."""

    def __init__(self, dim: int, codebook_dim: int, codebook_size: int, n_codebooks: int, n_semantic: int):
        super().__init__()
        self.semantic = ResidualQuantizer(dim, codebook_dim, codebook_size, n_semantic)
        self.acoustic = ResidualQuantizer(dim, codebook_dim, codebook_size, n_codebooks - n_semantic)
        self._n_semantic = n_semantic

    def encode(self, x: mx.array, n_codebooks: int) -> mx.array:
        """x (B, T, dim); codes (B, T, n_codebooks) int32, the semantic ones first."""
        n_semantic = min(self._n_semantic, n_codebooks)
        codes = [self.semantic.encode(x, n_semantic)]
        if n_codebooks > n_semantic:
            codes.append(self.acoustic.encode(x, n_codebooks - n_semantic))
        return mx.concatenate(codes, axis=-1)

    def decode(self, codes: mx.array) -> mx.array:
        """codes (B, T, n) of the first n codebooks; latents (B, T, dim)."""
        latent = self.semantic.decode(codes[..., : self._n_semantic])
        if codes.shape[-1] > self._n_semantic:
            latent = latent + self.acoustic.decode(codes[..., self._n_semantic :])
        return latent
