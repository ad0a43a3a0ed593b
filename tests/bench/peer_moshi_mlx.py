"""moshi_mlx: Kyutai's Mimi on MLX."""

# pyright: reportMissingImports=false
from mlx_rows import mimi_rows
from moshi_mlx.models.mimi import Mimi, mimi_202407
from worker import N_CODEBOOKS, serve

if __name__ == "__main__":
    serve(["moshi-mlx", "mlx"], mimi_rows(lambda: Mimi(mimi_202407(N_CODEBOOKS))))
