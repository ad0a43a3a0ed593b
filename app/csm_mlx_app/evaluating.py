"""What `csm evaluate` does between its flags and its table."""

from pathlib import Path
from typing import Any

from csm_mlx.evaluate import Evaluation, Utterance, dnsmos, evaluate, plot
from csm_mlx.recognize import Whisper
from csm_mlx_app import console, loading, options, prompt


def run(
    sentences: list[str],
    *,
    model: str | None,
    adapter: Path | None,
    voice: str | None,
    voice_text: str | None,
    speaker: int | None,
    given: dict[str, Any],
    seed: int,
    whisper: str,
    quality: bool,
) -> Evaluation:
    """Say and hear every sentence, with a bar that shows the word error rate so far."""
    csm = loading.load(model, adapter=adapter, speaks=True)
    reference = None if voice is None else prompt.load_voice(csm, voice, voice_text, speaker)
    done: list[Utterance] = []
    with console.progress(
        "{task.completed:.0f}/{task.total:.0f} sentences  {task.fields[rate]}  [dim]{task.fields[text]}"
    ) as show:
        for utterance in evaluate(
            csm,
            sentences,
            Whisper(whisper),
            speaker=reference.speaker if reference else speaker or 0,
            voice=reference,
            sampling=options.sampling(csm.config.sampling, given),
            seed=seed,
            judge=dnsmos if quality else None,
        ):
            done.append(utterance)
            rate = f"word error rate {100 * Evaluation(tuple(done)).word_error_rate:.1f} %"
            show(completed=len(done), total=len(sentences), rate=rate, text=utterance.heard)
    return Evaluation(tuple(done))


def draw(result: Evaluation, path: Path) -> None:
    plot(result, path)
    console.talk(f"picture -> {path}")


def show(result: Evaluation) -> None:
    """Every sentence that was not heard as it is, then the figures."""
    wrong = [u for u in result.utterances if u.n_wrong or u.missing_end]
    rows = [(f"{u.n_wrong}/{u.n_words}", "" if not u.missing_end else "no end", u.text, u.heard or "-") for u in wrong]
    if rows:
        console.table(("wrong", "", "said", "heard"), rows)
        print()
    n, rate, pace = len(result.utterances), result.words_per_minute, result.real_time_factor
    figures = [
        ("sentences", str(n)),
        ("word error rate", f"{100 * result.word_error_rate:.1f} %"),
        ("words a minute", "-" if rate is None else f"{rate:.0f}"),
        ("early ends", f"{result.n_early_ends} of {n}"),
        ("missing ends", f"{result.n_missing_ends} of {n}"),
        ("pitch", "-" if result.pitch_hz is None else f"{result.pitch_hz:.0f} Hz"),
        ("real-time factor", "-" if pace is None else f"{pace:.2f}"),
    ]
    figures += [(f"DNSMOS {name}", f"{score:.2f}") for name, score in (result.quality or {}).items()]
    console.table(("figure", "value"), figures)
