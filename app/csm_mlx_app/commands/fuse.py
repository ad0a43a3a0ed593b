"""`csm fuse`: an adapter and its base become one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options


def fuse(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder that csm train made.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The checkpoint to make.")],
    model: options.AdapterModel = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            rich_help_panel=options.QUANTIZATION,
            help="Leave the layers float that a quantized base has quantized: larger, and nothing is rounded again.",
        ),
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Merge an adapter into its base: a checkpoint of its own, at no cost per frame.

    OUT appears whole or not at all; the base stays as it is.

    [bold]Examples[/bold]
      csm fuse adapters/anna -o weights/anna
      csm say "Hello." --model anna
      csm fuse adapters/anna -o weights/anna-q4 --model csm-1b-q4
      csm fuse adapters/anna -o weights/anna-float --dequantize
    """
    from csm_mlx.checkpoint.fuse import fuse_checkpoint
    from csm_mlx_app import converting, loading

    base = loading.base_of(adapter, model)
    report = converting.watch(
        lambda **shown: fuse_checkpoint(base, adapter, out, dequantize=dequantize, force=force, **shown)
    )
    converting.tell(report)
    if as_json:
        console.data(report.to_dict())
