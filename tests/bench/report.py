"""What was measured, for people: a table in Markdown, JSON, and a chart.

    python tests/bench/report.py docs/benchmarks.json    # the page and the chart anew

Only what stands between the two marks of docs/benchmarks.md is replaced: the rest of the page is written by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import PEERS, STAGES, STARTUP, Row, Stage

NAME = "benchmarks"
FLOORS = ("floor", "matvecs")
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
NOTES = (
    "Each figure is the median and, in brackets, the quartiles, in milliseconds. Processor time at one thread is the "
    "one to compare: other programs disturb it least. All peers did the same work on random weights at the same "
    "dimensions in float32, one process each, taking turns row by row. The floor is our weights as MLX's bare "
    "products, each as often as it is read, in the layout and with the rows that ours take; matvecs are "
    "each layer's weight as it lies in memory, by `x @ weight.T`. A better BLAS or layout can be faster than both."
)


class Spread(NamedTuple):
    low: float
    median: float
    high: float
    n: int


def spread(samples: list[dict[str, float]], key: str) -> Spread:
    low, median, high = np.percentile([sample[key] for sample in samples], (25, 50, 75))
    return Spread(float(low), float(median), float(high), len(samples))


def digits(value: float) -> str:
    """Three that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(samples: list[dict[str, float]] | None, key: str) -> str:
    if not samples:
        return ""
    if key not in samples[0]:
        return digits(max(sample["value"] for sample in samples))
    s = spread(samples, key)
    return f"{digits(s.median)} ({digits(s.low)}–{digits(s.high)})"


def columns(stage: Stage, result: dict[str, Any]) -> list[str]:
    """The peers that have something to show, or a reason why not."""
    filled = {name for row in stage.rows for kind in ("samples", "missing") for name in result[kind].get(row.name, {})}
    return [peer.name for peer in PEERS if peer.name in filled]


def stage_table(stage: Stage, result: dict[str, Any], key: str, rows: list[Row]) -> list[str]:
    names = columns(stage, result)
    lines = ["| " + " | ".join(["", *names]) + " |", "|" + "---|" * (1 + len(names))]
    for row in rows:
        samples, missing = result["samples"].get(row.name, {}), result["missing"].get(row.name, {})
        title = row.title if row.unit == "ms" else f"{row.title} ({row.unit})"
        cells = [
            f"– [{reasons(result).index(missing[name]) + 1}]" if name in missing else cell(samples.get(name), key)
            for name in names
        ]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return lines


def reasons(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(reason for row in result["missing"].values() for reason in row.values()))


def embedded_lines(figures: dict[str, Any]) -> list[str]:
    if "error" in figures:
        return ["## csm-tiny", "", f"`csm bench` failed: {figures['error']}"]
    return [
        f"## {figures['model']}, the embedded voice: `csm bench`",
        "",
        f"Real-time factor {figures['real_time_factor']:.2f}; first audio {1000 * figures['first_audio_s']:.0f} ms, "
        f"{1000 * figures['first_audio_cold_s']:.0f} ms after loading; frame {figures['frame_p50_ms']:.1f} ms "
        f"(99 % below {figures['frame_p99_ms']:.1f} ms); prefill {1000 * figures['prefill_s_per_100_rows']:.0f} ms per "
        f"100 rows; codec {figures['encode_ms']:.1f} ms to encode a frame, {figures['decode_ms']:.1f} ms to decode it; "
        f"peak memory {figures['peak_bytes'] / 1e6:.0f} MB. By the clock, not by processor time.",
        "",
        f"The machine read memory at {figures['memory_gb_per_s']:.1f} GB/s.",
    ]


def startup_lines(samples: dict[str, list[dict[str, float]]]) -> list[str]:
    """A table of what `startup.py` measured, by circumstance."""
    n_runs = len(next(iter(samples.values())))
    lines = [
        f"A short sentence by `csm say` with the embedded voice: by the clock, median and quartiles of {n_runs} runs.",
        "",
        "| " + " | ".join(["", *samples, "goal"]) + " |",
        "|" + "---|" * (2 + len(samples)),
    ]
    for figure in STARTUP:
        cells = [cell(taken, figure.name) for taken in samples.values()]
        goal = "" if figure.goal is None else f"at most {figure.goal:g}"
        lines.append("| " + " | ".join([figure.title, *cells, goal]) + " |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    m, load, cores = result["machine"], result["load_average"], result.get("cores_each")
    each = f" Each process was kept to {cores} core{'s' * (cores > 1)}." if cores else ""
    lines = [
        f"Taken on {result['date']} by `{result['command']}`: {m['chip']}, {m['cores']} cores, {m['memory_gb']} GB, "
        f"{m['system']}, Python {m['python']}, BLAS {m['blas']}; load average {min(load):.1f} to {max(load):.1f}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items())) + ".",
        "",
        NOTES + each,
        "",
        f"![bars of the processor time]({NAME}.png)",
    ]
    for stage in STAGES:
        if not columns(stage, result):
            continue
        timed = [row for row in stage.rows if row.unit == "ms"]
        lines += ["", f"## {stage.title}", "", "Processor time:", ""]
        lines += stage_table(stage, result, "cpu_ms", list(stage.rows))
        lines += ["", "By the clock:", "", *stage_table(stage, result, "wall_ms", timed)]
    lines += ["", *embedded_lines(result["embedded"])]
    if result.get("startup"):
        lines += ["", "From outside:", "", *startup_lines(result["startup"])]
    lines += [""] * bool(result["missing"])
    lines += [f"[{number}] {reason}\n" for number, reason in enumerate(reasons(result), 1)]
    return "\n".join(lines).rstrip() + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """A panel per row, a bar per peer: the median, with the quartiles as a whisker."""
    from csm_mlx.plots import new_figure, save_figure

    timed = [(stage, row) for stage in STAGES for row in stage.rows if "cpu_ms" in _first(result, row)]
    n_columns = min(3, len(timed))
    n_rows = -(-len(timed) // n_columns)
    figure = new_figure(4.6 * n_columns, 2.6 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axis, (stage, row) in zip(axes, timed, strict=False):
        names = [peer.name for peer in PEERS if result["samples"][row.name].get(peer.name)][::-1]
        spreads = [spread(result["samples"][row.name][name], "cpu_ms") for name in names]
        axis.barh(
            names,
            [s.median for s in spreads],
            xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            color=["#c44536" if name == "csm-mlx" else "#59c3c3" if name in FLOORS else "#4062bb" for name in names],
        )
        axis.set_title(f"{stage.name}: {row.title}", fontsize="medium", loc="left")
    for axis in axes[len(timed) :]:
        axis.set_axis_off()
    figure.suptitle(f"processor time in ms at one thread, {result['machine']['chip']}, {result['date']}")
    save_figure(figure, path)


def _first(result: dict[str, Any], row: Row) -> dict[str, float]:
    """A sample of whoever has one."""
    return next((samples[0] for samples in result["samples"].get(row.name, {}).values() if samples), {})


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    page = folder / f"{NAME}.md"
    text = page.read_text() if page.exists() else f"# How fast\n\n{BEGIN}\n{END}\n"
    before, mark, rest = text.partition(BEGIN)
    _, other, after = rest.partition(END)
    if not mark or not other:
        sys.exit(f"{page} lacks the lines {BEGIN} and {END}, between which the results go; put them back")
    page.write_text(f"{before}{BEGIN}\n{markdown(result)}{END}{after}")
    chart(result, folder / f"{NAME}.png")
    print(f"results -> {folder}/{NAME}.md, .json, .png", file=sys.stderr)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(json.loads(source.read_text()), source.parent)
