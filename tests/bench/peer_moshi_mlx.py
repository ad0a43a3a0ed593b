"""moshi_mlx: Kyutai's Mimi on MLX."""

# pyright: reportMissingImports=false
import mlx.core as mx
from mlx_rows import mimi_rows
from moshi_mlx.models.mimi import Mimi, mimi_202407
from worker import CACHE, N_CODEBOOKS, serve


def mimi() -> Mimi:
    model = Mimi(mimi_202407(N_CODEBOOKS))
    model.load_pytorch_weights(str(CACHE / "mimi-kyutai.safetensors"))
    mx.eval(model.parameters())
    return model


if __name__ == "__main__":
    serve(["moshi-mlx", "mlx"], mimi_rows(mimi))
