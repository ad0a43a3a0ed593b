"""`csm bench`: how fast a checkpoint speaks on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options


def bench(
    frames: Annotated[
        int, typer.Option("--frames", min=1, metavar="N", help="Frames of speech to time; 100 are 8 s of sound.")
    ] = 100,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", rich_help_panel=options.OUTPUT, help="Draw each frame's time and the line to stay below."
        ),
    ] = None,
    as_json: options.Json = False,
    model: options.Model = None,
    adapter: options.Adapter = None,
    seed: options.Seed = 0,
) -> None:
    """Time how fast a checkpoint speaks on this machine.

    A frame is 80 ms of sound, so one that takes longer stutters. What is
    timed, and what to do when it is slow:

      first audio       from the call to the first sample, once warm and
                        right after loading
      frame             one more frame of speech: its codes, its sound, and
                        its way back into the model; the median, and what
                        99 of 100 stay below
      real-time factor  work per second of sound; below 1 keeps up
      prefill           reading context, per 100 rows: 100 tokens of text
                        or 8 s of a voice clip
      codec             one frame into codes, and one back into sound
      graph             operations that Python queues for a frame without
                        its codec, and how long it takes to do so
      floor             the weights of a frame as MLX's bare products, with
                        nothing between. Near 100 % of the frame, only fewer
                        bits help (csm quantize); far below it, the codec
                        and the overhead weigh more
      bandwidth         the same weights at the speed at which this machine
                        reads memory: no program can be faster, unless they
                        fit its caches
      peak memory       of all arrays, weights included

    Close other programs first: they take the same cores and memory.

    [bold]Examples[/bold]
      csm bench
      csm bench --model csm-1b-q4 --frames 250 --plot frames.png
      csm bench --model csm-1b-q4 --json | jq .frame_p99_ms
    """
    if plot is not None:
        options.png(plot, "--plot")

    from csm_mlx_app import benching

    result = benching.run(model=model, adapter=adapter, n_frames=frames, seed=seed)
    if plot is not None:
        benching.draw(result, plot)
    if as_json:
        console.data(result.to_dict())
    else:
        benching.show(result)
