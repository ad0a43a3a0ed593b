"""How many operations a frame of CSM or Mimi, or a step of Moshi, is: what it costs besides its weights anywhere.

The number depends on the code and on MLX's version alone. Lower it when the code gets better; a change that needs more
has to say why.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from support.models import random_csm_model
from support.moshi import random_frames, random_moshi

from csm_mlx.benchmark import FrameLoop, count_nodes
from csm_mlx.config import CsmConfig, MoshiConfig, SamplingConfig, TransformerConfig
from csm_mlx.generate.duplex import AUDIO_SAMPLING, TEXT_SAMPLING, DuplexState, duplex_step, first_state
from csm_mlx.generate.monologue import TextRules, TextSampler
from csm_mlx.models.mimi import Mimi
from csm_mlx.sampling import Sampler
from csm_mlx.stored import MoshiCheckpointConfig, any_preset, preset

GREEDY = SamplingConfig(temperature=0.0)
TOP_K = SamplingConfig(temperature=0.9, top_k=50)

MOST_NODES = {"greedy": 3861, "top-k": 4007}
"""Of one frame of csm-1b without its codec, in MLX 0.32.4 on the CPU, where RMSNorm and the like are several. 32 of
them cut the last rows of the heads off, which only a BLAS needs that reads weights by columns (`lies_by_inputs`)."""

MOST_NODES_OF_MOSHI = {"greedy": 2141, "as Kyutai's": 2206}
"""Of one step of moshi-7b without its codec. With 8 temporal layers it takes 1670, where moshi_mlx takes 5086."""

MOST_NODES_OF_MIMI = {("encode", False): 622, ("decode", False): 442, ("encode", True): 772, ("decode", True): 495}
"""Of one streamed frame at true dimensions, 32 codebooks: 1,343 and 1,061 where each layer normalizes, turns and masks
for itself and nothing is compiled. More where few rows are filled up for the BLAS (`layout.multiplied`)."""


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


def moshi_7b() -> MoshiConfig:
    moshi = preset_of_moshi()
    depth = moshi.depth
    assert depth is not None
    return replace(
        moshi,
        temporal=replace(narrow(moshi.temporal), n_kv_heads=2),
        depth=replace(narrow(depth), n_kv_heads=2),
        text_vocab_size=64,
        text_head_size=64,
    )


def preset_of_moshi() -> MoshiConfig:
    config = any_preset("moshi-7b")
    assert isinstance(config, MoshiCheckpointConfig)
    return config.moshi


@pytest.mark.parametrize(
    ("name", "text", "audio"), [("greedy", GREEDY, GREEDY), ("as Kyutai's", TEXT_SAMPLING, AUDIO_SAMPLING)]
)
def test_a_step_of_moshi_is_no_more_operations_than_it_was(
    name: str, text: SamplingConfig, audio: SamplingConfig
) -> None:
    """Its codec aside: what `TokenSession.step` builds, all 32 layers and 8 times 6 of the depth decoder's."""
    with mx.stream(mx.cpu):
        model = random_moshi(moshi_7b())
        model.prepare()
        texts, codes = TextSampler(model.config, text, TextRules()), Sampler(audio)
        state = first_state(model, 1, mx.random.key(0), texts, codes)
        counts = []
        for frame in random_frames(model.config, 6):
            heard = mx.array(frame.astype(np.int32))
            mx.eval(heard, computed(state))
            step, state = duplex_step(model, heard, state, texts, codes)
            assert step.codes is not None
            counts.append(count_nodes(*computed(state), step.codes))
    assert counts[-1] == counts[-2], "the graph grows from step to step"
    assert counts[-1] <= MOST_NODES_OF_MOSHI[name]


@pytest.mark.parametrize(("way", "fills"), MOST_NODES_OF_MIMI)
def test_a_streamed_frame_of_mimi_is_no_more_operations_than_it_was(
    way: str, fills: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csm_mlx.nn.layout.openblas_core", lambda: "Zen" if fills else "")
    with mx.stream(mx.cpu):
        mimi, state, counts = Mimi(preset("csm-1b").codec), None, []
        mimi.update(tree_map(mx.zeros_like, mimi.parameters()))  # to draw that many takes seconds
        x = mx.zeros((1, mimi.config.frame_size, 1)) if way == "encode" else mx.zeros((1, 1, 32), mx.int32)
        for _ in range(3):
            out, state = mimi.encode(x, state) if way == "encode" else mimi.decode(x, state)
            arrays = [array for _, array in tree_flatten(state) if isinstance(array, mx.array)]
            counts.append(count_nodes(out, *arrays))
            mx.eval(out, arrays)
    assert counts[-1] == counts[-2], "the graph grows from frame to frame"
    assert counts[-1] <= MOST_NODES_OF_MIMI[way, fills]


def computed(state: DuplexState) -> list[mx.array]:
    """What is asked for of a state."""
    cache = state["cache"]
    return [*cache["keys"], *cache["values"], *state["said"], state["key"], state["hidden"]]


def test_what_is_computed_already_does_not_count() -> None:
    x = mx.ones((2, 2))
    mx.eval(x)
    y = x @ x
    assert count_nodes(y) == 1
    assert count_nodes(mx.abs(y), mx.abs(y)) == 3
    mx.eval(y)
    assert count_nodes(y) == 0
