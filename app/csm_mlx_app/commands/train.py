"""`csm train`: a checkpoint learns a voice from clips and their words."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options

METHOD, SCHEDULE, CHECKS, DATA = "Method", "Schedule", "Validation and saving", "Clips"


class Method(str, Enum):
    lora = "lora"
    dora = "dora"
    full = "full"


def train(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST.jsonl",
            help='The clips, one per line: {"speaker": 0, "text": "What it says.", "audio": "clip.wav"}; paths are '
            'relative to it. "context", a list of such turns, is what was said before.',
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            rich_help_panel=options.OUTPUT,
            help="The folder to make: of the adapter, or with full of the whole checkpoint.",
        ),
    ] = None,
    model: options.Model = None,
    method: Annotated[
        Method,
        typer.Option(
            rich_help_panel=METHOD,
            help="lora: a few weights beside each layer; dora: these and the layer's scales; full: every weight, which "
            "makes a whole checkpoint.",
        ),
    ] = Method.lora,
    rank: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=METHOD, show_default="8", help="Size of an adapter."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A", rich_help_panel=METHOD, show_default="16", help="Strength of an adapter: alpha / rank."
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=METHOD,
            show_default="0",
            help="Share of an adapter's input left out at random.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="PATTERN",
            rich_help_panel=METHOD,
            show_default="attention, MLP and projection of both transformers",
            help="Layers that get an adapter, such as 'backbone.*.q_proj'; may be repeated.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=SCHEDULE, show_default="10", help="Go so often through all clips."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=SCHEDULE, help="Instead of --epochs: so many updates."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=SCHEDULE, show_default="4", help="Clips at once: memory grows with it."
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=SCHEDULE,
            show_default="1",
            help="Batches per update: as a larger batch, in less memory.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            rich_help_panel=SCHEDULE,
            show_default="0.0002, full 0.00002",
            help="The learning rate at its highest; it falls as a cosine.",
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", rich_help_panel=SCHEDULE, show_default="10", help="Updates in which the rate rises."
        ),
    ] = None,
    checkpoint_grads: Annotated[
        bool,
        typer.Option(
            "--checkpoint-grads",
            rich_help_panel=SCHEDULE,
            help="Compute activations twice instead of keeping them: less memory, a third more time.",
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**64 - 1, metavar="N", rich_help_panel=SCHEDULE, help="Same seed, same training."),
    ] = 0,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SHARE",
            rich_help_panel=CHECKS,
            help="Clips to judge by and not to train on: another manifest, or a share of this one such as 0.1. The "
            "weights that do best on them are kept.",
        ),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=CHECKS, show_default="once an epoch", help="Judge every N updates."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=CHECKS, help="Stop after N judgements without a better one."),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=CHECKS,
            show_default="50",
            help="Save what --resume goes on from every N updates.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=CHECKS,
            help="Go on where an interrupted training was saved; the other flags as before.",
        ),
    ] = False,
    speaker: Annotated[
        list[int] | None,
        typer.Option(
            "--speaker",
            min=0,
            metavar="N",
            rich_help_panel=DATA,
            show_default="any",
            help="A speaker number that the clips may have; may be repeated.",
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option("--resample", rich_help_panel=DATA, help="Take sound of any rate, not only of the codec's own."),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=DATA,
            show_default=".csm-cache beside the manifest",
            help="Where the codes of the clips are kept, which are made once.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            rich_help_panel=options.OUTPUT,
            show_default="OUT.training/curves.png",
            help="Draw loss and learning rate, as they come.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=options.OUTPUT, help="Only check the clips and say what memory it would take."
        ),
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Teach a checkpoint a voice, from clips and what they say.

    A few minutes of clean speech in clips of 2 to 15 seconds are enough for a
    voice. All clips are checked before anything starts. Ctrl-C saves; --resume
    goes on to the same weights as if nothing had happened. On a quantized
    checkpoint the base stays quantized.

    [bold]Examples[/bold]
      csm train clips.jsonl -o adapters/anna
      csm train clips.jsonl --model csm-1b-q4 --dry-run
      csm train clips.jsonl --model csm-1b-q4 -o adapters/anna
      csm train clips.jsonl -o adapters/anna --validation 0.1 --patience 3
      csm train clips.jsonl -o adapters/anna --batch 1 --accumulate 4
      csm say "Hello, it's me." --adapter adapters/anna
      csm train clips.jsonl -o weights/anna --method full

    Several processes, or several Macs, share each update:
      mlx.launch -n 2 -- csm train clips.jsonl -o adapters/anna
      mlx.launch --hosts IP,IP -- csm train clips.jsonl -o adapters/anna
    """
    options.existing_file(manifest, "MANIFEST.jsonl")
    if out is None and not dry_run:
        raise typer.BadParameter("name the folder to make: -o adapters/NAME", param_hint="--out")
    if resume and force:
        raise typer.BadParameter("it would go on with what --force replaces; choose one", param_hint="--resume")
    if validation is None and (patience is not None or validate_every is not None):
        flag = "--patience" if validate_every is None else "--validate-every"
        raise typer.BadParameter("it belongs to --validation, which is missing", param_hint=flag)
    if plot is not None:
        options.png(plot, "--plot")
    held_out = _validation(validation)

    from csm_mlx_app import training

    config = training.configure(
        method.value,
        adapter={"rank": rank, "alpha": alpha, "dropout": dropout, "targets": tuple(target) if target else None},
        epochs=epochs,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        learning_rate=lr,
        warmup=warmup,
        validate_every=validate_every,
        patience=patience,
        save_every=save_every,
        checkpoint_blocks=checkpoint_grads or None,
        seed=seed,
    )
    place = None if out is None or dry_run else training.Place(out=out, resume=resume, force=force, plot=plot)
    ready = training.Training(
        manifest, config, place, model=model, validation=held_out, speakers=speaker, resample=resample, cache=cache
    )
    ready.tell()
    numbers = ready.to_dict()
    code = 0
    if place is not None:
        trained = ready.run()
        numbers |= trained.to_dict()
        code = 128 + trained.signal if trained.signal else 0
        if ready.talks:
            trained.tell()
    if as_json and ready.talks:
        console.data(numbers)
    raise typer.Exit(code)


def _validation(value: str | None) -> Path | float | None:
    """A share of the clips or another manifest."""
    if value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        return options.existing_file(Path(value), "--validation")
    if not 0 < share < 1:
        raise typer.BadParameter(
            f"{value} is no share; expected one between 0 and 1, or a file", param_hint="--validation"
        )
    return share
