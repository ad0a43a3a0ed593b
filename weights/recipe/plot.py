"""Curves of every stage as curves.png in the state folder."""

import json

from state import load_torch, log, state_path

PANELS = {
    "lm": (("c0", "held_c0"), ("accuracy", "held_phone_error"), ("depth", "guidance")),
    "basis": (("mel", "log"), ("wave",), ("linear",)),
    "filters": (("c0",), ("right0", "right1", "right2"), ("c1", "c2")),
    "decoder": (("mel", "log"), ("wave",), ("linear",)),
    "encoder": (("c0",), ("right0", "right1", "right2"), ("c1", "c2")),
}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(PANELS), 3, figsize=(12, 14), constrained_layout=True)
    for row, (stage, panels) in zip(axes, PANELS.items(), strict=True):
        path = state_path(f"{stage}.pt")
        curve = json.loads(load_torch(path)["curve"]) if path.exists() else []
        for axis, keys in zip(row, panels, strict=True):
            for key in keys:
                points = [(p["step"], p[key]) for p in curve if key in p]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), label=key.replace("_", " "), marker="." if "held" in key else ""
                    )
            axis.set(title=stage, xlabel="step")
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(state_path("curves.png"), dpi=90)
    log(f"curves -> {state_path('curves.png')}")


if __name__ == "__main__":
    main()
