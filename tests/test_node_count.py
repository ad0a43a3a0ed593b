"""How many operations a frame of CSM is: what it costs besides its weights, on any machine.

The number depends on the code and on MLX's version alone. Lower it when the code gets better; a change that needs more
has to say why.
"""

from dataclasses import replace

import mlx.core as mx
import pytest
from support.models import random_csm_model

from csm_mlx.benchmark import FrameLoop, count_nodes
from csm_mlx.config import CsmConfig, SamplingConfig, TransformerConfig
from csm_mlx.stored import preset

GREEDY = SamplingConfig(temperature=0.0)
TOP_K = SamplingConfig(temperature=0.9, top_k=50)

MOST_NODES = {"greedy": 5609, "top-k": 5883}
"""Of one frame of csm-1b without its codec, in MLX 0.32.4 on the CPU, where RMSNorm and the like are several."""


def narrow(stack: TransformerConfig) -> TransformerConfig:
    """The same layers with tiny widths: they do not change the graph."""
    return replace(stack, dim=32, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=32)


def csm_1b() -> CsmConfig:
    csm = preset("csm-1b").csm
    return replace(csm, backbone=narrow(csm.backbone), depth=narrow(csm.depth), text_vocab_size=8)


@pytest.mark.parametrize(("name", "sampling"), [("greedy", GREEDY), ("top-k", TOP_K)])
def test_a_frame_is_no_more_operations_than_it_was(name: str, sampling: SamplingConfig) -> None:
    with mx.stream(mx.cpu):  # a GPU's fused kernels would count otherwise
        loop = FrameLoop(random_csm_model(csm_1b()), sampling)
        loop.run()  # whatever is made once is made now
        n_nodes = count_nodes(*loop.build())
        loop.finish()
        assert count_nodes(*loop.build()) == n_nodes, "the graph grows from frame to frame"
    assert n_nodes <= MOST_NODES[name]


def test_what_is_computed_already_does_not_count() -> None:
    x = mx.ones((2, 2))
    mx.eval(x)
    y = x @ x
    assert count_nodes(y) == 1
    assert count_nodes(mx.abs(y), mx.abs(y)) == 3
    mx.eval(y)
    assert count_nodes(y) == 0
