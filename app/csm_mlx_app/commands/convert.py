"""`csm convert`: a checkpoint of any known layout becomes a folder of ours."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from csm_mlx_app import console, options

T = TypeVar("T")


def convert(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="A folder or a hub id, in any layout; or --hf-path.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="The folder to make, ./weights/NAME by default; or --mlx-path."),
    ] = None,
    hf_path: Annotated[
        str | None, typer.Option("--hf-path", "--model", metavar="SOURCE", help="SOURCE, as mlx-lm spells it.")
    ] = None,
    mlx_path: Annotated[
        Path | None, typer.Option("--mlx-path", metavar="OUT", help="OUT, as mlx-lm spells it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[
        options.DType, typer.Option(metavar="DTYPE", help="Of what is not quantized: bfloat16, float16 or float32.")
    ] = options.DType.bfloat16,
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize",
            "-q",
            rich_help_panel=options.QUANTIZATION,
            help="Quantize, with --q-recipe q4 by default; any other --q flag implies it.",
        ),
    ] = False,
    q_recipe: options.QRecipeOption = None,
    q_bits: options.QBits = None,
    q_group_size: options.QGroupSize = None,
    q_mode: options.QModeOption = None,
    codec: Annotated[
        str | None, typer.Option(metavar="FILE", help="Mimi's weights, where they are not inside or beside SOURCE.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="tokenizer.json, or sentencepiece's model for Kyutai's, where it is not inside SOURCE."
        ),
    ] = None,
    notice: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A line to say wherever the checkpoint speaks.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint, and quantize it on the way.

    Takes CSM in the layouts of Hugging Face, Sesame, senstella and mlx-community, and
    Kyutai's speech-to-text, Moshi and Hibiki in those of PyTorch, MLX and candle, and
    the first in that of Hugging Face too.
    From the hub only the needed files are fetched. OUT appears whole or not at all.

    [bold]Examples[/bold]
      csm convert unsloth/csm-1b weights/csm-1b-q4 -q
      csm convert unsloth/csm-1b weights/csm-1b
      csm convert kyutai/stt-1b-en_fr-candle weights/stt-1b-q4 -q
      csm convert kyutai/moshika-pytorch-bf16 weights/moshika-q4 -q
      csm convert ~/Downloads/csm-1b weights/csm-1b-q6 -q --q-bits 6
      csm convert --hf-path unsloth/csm-1b --mlx-path mlx_model -q
    """
    source, target = _either(source, hf_path, "SOURCE", "--hf-path"), _either(out, mlx_path, "OUT", "--mlx-path")
    if source is None:
        raise typer.BadParameter(
            "name a folder or a hub id: csm convert unsloth/csm-1b weights/csm-1b", param_hint="SOURCE"
        )
    from csm_mlx_app import converting

    quantization = options.quantization(quantize, q_recipe, q_bits, q_group_size, q_mode)
    report = converting.convert(
        source,
        target or converting.default_out(source, quantization),
        revision=revision,
        dtype=dtype.value,
        quantization=quantization,
        codec=codec,
        tokenizer=tokenizer,
        notice=notice,
        force=force,
    )
    converting.tell(report)
    if as_json:
        console.data(report.to_dict())


def _either(argument: T | None, option: T | None, name: str, flag: str) -> T | None:
    if argument is not None and option is not None:
        raise typer.BadParameter(f"the same as {flag}; give one of them", param_hint=name)
    return option if argument is None else argument
