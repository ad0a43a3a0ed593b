"""`csm quantize`: smaller and faster weights, and what they cost."""

from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options, prompt

REPORT = "Report"


def quantize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A float checkpoint: a folder or a hub id.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to make, ./weights/NAME-RECIPE by default.")
    ] = None,
    q_recipe: options.QRecipeOption = None,
    q_bits: options.QBits = None,
    q_group_size: options.QGroupSize = None,
    q_mode: options.QModeOption = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            rich_help_panel=REPORT,
            help="Measure the loss against SOURCE: KL divergence and top-1 agreement by codebook, size, bits a weight.",
        ),
    ] = False,
    turns: Annotated[
        Path | None,
        typer.Option(
            metavar="TURNS.jsonl",
            rich_help_panel=REPORT,
            help="Text and audio to measure on, as for say --context; without it, what SOURCE itself says.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", rich_help_panel=REPORT, help="Draw the report, per codebook.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a checkpoint: a quarter of the memory, several times the speed.

    With --report, an OUT that is there already is measured and left alone.

    [bold]Examples[/bold]
      csm quantize weights/csm-1b
      csm quantize weights/csm-1b weights/csm-1b-mixed --q-recipe mixed --report
      csm quantize weights/csm-1b weights/csm-1b-3bit --q-bits 3 --q-group-size 32
      csm quantize weights/csm-1b --report --turns heldout.jsonl --plot loss.png
    """
    if (turns is not None or plot is not None) and not report:
        raise typer.BadParameter("it belongs to --report; add that flag", param_hint="--turns" if turns else "--plot")
    if plot is not None:
        options.png(plot, "--plot")
    heard = prompt.read_turns(turns, "--turns") if turns else []
    quantization = options.quantization(True, q_recipe, q_bits, q_group_size, q_mode)

    from csm_mlx_app import converting

    source = options.resolve_model(source)
    out = out or converting.default_out(source, quantization)
    numbers = {}
    if report and out.is_dir() and not force:
        console.note(f"{out} is there and measured as it is; --force makes it anew")
    else:
        made = converting.convert(source, out, quantization=quantization, force=force)
        converting.tell(made)
        numbers = made.to_dict()
    if report:
        from csm_mlx_app import reporting

        loss = reporting.measure(source, out, heard, plot)
        numbers["report"] = loss.to_dict()
        if not as_json:
            reporting.show(loss)
    if as_json:
        console.data(numbers)
