"""Residual vector quantization, and Mimi's split of it into semantic and acoustic halves."""

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.nn.layout import laid_out, multiplied


class ResidualQuantizer(nn.Module):
    """A chain of codebooks, each quantizing what the ones before it left over, in a projected space."""

    def __init__(self, dim: int, codebook_dim: int, codebook_size: int, n_codebooks: int):
        super().__init__()
        self.input_proj = nn.Linear(dim, codebook_dim, bias=False)
        self.output_proj = nn.Linear(codebook_dim, dim, bias=False)
        self.codebooks = mx.random.normal((n_codebooks, codebook_size, codebook_dim))
        self._tables: tuple[mx.array, list[tuple[mx.array, ...]]] | None = None

    def _make_tables(self) -> list[tuple[mx.array, ...]]:
        """Per codebook, the centroids c (codebook_size, codebook_dim), the same transposed, which is how they lie in
        memory, and -|c|² / 2 (1, codebook_size)."""
        if self._tables is None or self._tables[0] is not self.codebooks:
            self.codebooks = laid_out(self.codebooks, 0, 2, 1)
            biases = -0.5 * mx.square(self.codebooks).sum(-1)[:, None]
            tables = list(zip(self.codebooks, self.codebooks.swapaxes(1, 2), biases, strict=True))
            mx.eval(tables)
            self._tables = (self.codebooks, tables)
        return self._tables[1]

    def encode(self, x: mx.array, n_codebooks: int) -> mx.array:
        """x (B, T, dim); codes (B, T, n_codebooks) int32 of the nearest centroids, residual after residual."""
        batch, n_steps, dim = x.shape
        residual, codes = self.input_proj(x.reshape(-1, dim)), []
        for centroids, columns, bias in self._make_tables()[:n_codebooks]:
            # -|x - c|² / 2 without the term that all centroids share.
            codes.append(mx.argmax(multiplied(residual, columns, bias), axis=-1))
            residual = residual - centroids[codes[-1]]
        rows = mx.concatenate(codes).reshape(n_codebooks, -1)  # (n_codebooks, B * T)
        return rows.T.reshape(batch, n_steps, -1).astype(mx.int32)

    def decode(self, codes: mx.array) -> mx.array:
        """codes (B, T, n) of the first n codebooks; their sum, projected back: (B, T, dim)."""
        return self.output_proj(self.codebooks[mx.arange(codes.shape[-1]), codes].sum(-2))


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
