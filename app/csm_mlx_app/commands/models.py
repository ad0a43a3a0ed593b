"""`csm models`: what is here, and what would fit."""

from typing import TYPE_CHECKING

from csm_mlx_app import console, options

if TYPE_CHECKING:
    from csm_mlx_app import checkpoints


def models(as_json: options.Json = False) -> None:
    """List the checkpoints that are here, and what would fit this machine's memory.

    Looks at the embedded voice, CSM_MODEL, the folder ./weights and the hub's
    cache. Any name under "Here" goes into --model: of say and talk for the kind
    csm, of transcribe for stt, of duplex for moshi.

    [bold]Examples[/bold]
      csm models
      csm say "Hello." --model csm-1b-q4
      csm models --json | jq -r '.here[].name'
    """
    from csm_mlx_app import checkpoints, machine

    here, broken = checkpoints.find_checkpoints()
    known = checkpoints.known_models()
    usable = machine.usable_bytes()
    if as_json:
        console.data(
            {
                "memory_bytes": machine.memory_bytes(),
                "usable_bytes": usable,
                "here": [{**model.to_dict(), "fits": model.memory_bytes <= usable} for model in here],
                "known": [{**model.to_dict(), "fits": model.memory_bytes <= usable} for model in known],
                "broken": broken,
            }
        )
        return
    print("Here:")
    console.table(
        ("model", "kind", "weights", "size", "memory", "fits", "from"),
        [(*_columns(model, usable), model.where) for model in here],
    )
    print(f"\nKnown, against the {console.size(usable)} that models may use here:")
    console.table(("model", "kind", "weights", "size", "memory", "fits"), [_columns(model, usable) for model in known])
    for line in broken:
        console.note(f"cannot be read: {line}")
    console.talk("\ncsm convert unsloth/csm-1b weights/csm-1b-q4 -q fetches csm-1b and quantizes it")


def _columns(model: "checkpoints.Known", usable_bytes: int) -> tuple[str, ...]:
    fits = "yes" if model.memory_bytes <= usable_bytes else "no"
    return model.name, model.kind, model.weights, console.size(model.size_bytes), console.size(model.memory_bytes), fits
