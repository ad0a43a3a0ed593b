"""Curves of every stage as curves.png in the state folder."""

import json

from state import load_torch, log, state_path

PANELS = {
    "lm": (("c0", "held_c0"), ("accuracy", "held_phone_error")),
    "basis": (("block",),),
    "filters": (("c0",), ("right0", "right1", "right2")),
    "decoder": (("mel", "log", "wave"),),
    "encoder": (("c0",), ("right0", "right1", "right2")),
}
"""Stage -> groups of figures; a stage that has not run is left out."""


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {
        name: json.loads(load_torch(path)["curve"]) for name in PANELS if (path := state_path(f"{name}.pt")).exists()
    }
    panels = [(name, keys) for name, curve in curves.items() for keys in PANELS[name] if curve]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 2.6 * len(panels)), constrained_layout=True, squeeze=False
    )
    for axis, (name, keys) in zip(axes[:, 0], panels, strict=True):
        for key in keys:
            points = [(p["step"], p[key]) for p in curves[name] if key in p]
            if points:
                axis.plot(*zip(*points, strict=True), label=key.replace("_", " "), marker="." if "held" in key else "")
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(state_path("curves.png"), dpi=90)
    log(f"curves -> {state_path('curves.png')}")


if __name__ == "__main__":
    main()
