"""`csm quantize --report`: the turns to measure on, the measuring, and the table."""

from pathlib import Path

import csm_mlx
from csm_mlx.quantize_report import QuantizationReport
from csm_mlx.quantize_report import plot as draw
from csm_mlx.quantize_report import report as compare
from csm_mlx_app import console, loading
from csm_mlx_app.prompt import TurnFile, load_turn

SENTENCES = (
    "Hello there, how are you today?",
    "The boat left the harbour before the sun was up.",
    "I would rather wait until it stops raining.",
    "Could you bring me the newspaper and a cup of tea?",
)
"""Said by the reference itself where no turns are given."""


def measure(reference: str, candidate: Path, heard: list[TurnFile], plot: Path | None) -> QuantizationReport:
    """Compare two checkpoints on given turns, or on what the reference says."""
    csm = loading.load(reference)
    turns = [load_turn(turn, csm.sample_rate_hz) for turn in heard] or _speak(csm)
    del csm  # `compare` loads one after the other, so that memory need hold one
    with console.progress("{task.completed:.0f}/{task.total:.0f} frames of the {task.fields[which]}") as show:
        report = compare(
            reference, candidate, turns, on_frames=lambda which, n, total: show(which=which, completed=n, total=total)
        )
    if plot is not None:
        draw(report, plot, candidate.name)
        console.talk(f"report -> {plot}")
    return report


def _speak(csm: csm_mlx.Csm) -> list[csm_mlx.Turn]:
    console.note("measured on what the source itself says; --turns TURNS.jsonl measures on real speech")
    session, turns = csm.session(seed=0), []
    for sentence in SENTENCES:
        speech = session.speak(sentence)
        for _ in speech:
            pass
        turns.append(csm_mlx.Turn(speaker=0, text=sentence, codes=speech.codes))
    return turns


def show(report: QuantizationReport) -> None:
    """The table on stdout."""
    rows = [
        (str(k), f"{kl:.4f}", f"{100 * share:.1f} %")
        for k, (kl, share) in enumerate(zip(report.kl, report.top1_agreement, strict=True))
    ]
    rows.append(("mean", f"{report.mean_kl:.4f}", f"{100 * report.mean_top1_agreement:.1f} %"))
    console.table(("codebook", "KL (nats)", "same first choice"), rows)
    print(
        f"{report.n_frames} frames; {console.size(report.reference_bytes)} -> {console.size(report.candidate_bytes)}, "
        f"{report.reference_bits_per_weight:.2f} -> {report.candidate_bits_per_weight:.2f} bits a weight"
    )
