"""What `csm say` does between its flags and its outputs: speak sentence after sentence, and account for it."""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from csm_mlx.checkpoint.convert import peak_memory_bytes
from csm_mlx_app import console
from csm_mlx_app.outputs import Outputs

if TYPE_CHECKING:
    from csm_mlx.generate.session import Csm, CsmSession
    from csm_mlx.generate.speech import Speech


class Spoken:
    """What was said so far, sentence by sentence."""

    def __init__(self, csm: "Csm", seed: int, load_s: float):
        self._csm = csm
        self._seed = seed
        self._load_s = load_s
        self._frame_s = csm.frame_size / csm.sample_rate_hz
        self.sentences: list[tuple[str, Speech]] = []
        self.interrupted = False
        self.failed = False
        """An error stopped it: the outputs may lack what was made."""

    def speak(
        self,
        session: "CsmSession",
        sentences: Iterable[str],
        speaker: int,
        max_seconds: float | None,
        outputs: Outputs,
    ) -> None:
        """Speak each sentence as it comes, until `max_seconds` of sound are made."""
        line = "{task.fields[sound]:.1f} s spoken, real-time factor {task.fields[pace]}  {task.fields[text]}"
        with console.progress(line) as show:
            for sentence in sentences:
                left_s = None if max_seconds is None else max_seconds - self.sound_s
                if left_s is not None and left_s < self._frame_s:
                    return
                speech = session.speak(sentence, speaker, max_seconds=left_s)
                self.sentences.append((sentence, speech))
                for pcm in speech:
                    outputs.write(pcm)
                    show(sound=self.sound_s, pace=self._pace(), text=sentence)
                outputs.pause()

    @property
    def n_frames(self) -> int:
        return sum(speech.stats.n_frames for _, speech in self.sentences)

    @property
    def sound_s(self) -> float:
        return sum(speech.stats.sound_s for _, speech in self.sentences)

    @property
    def work_s(self) -> float:
        return sum(speech.stats.work_s for _, speech in self.sentences)

    @property
    def real_time_factor(self) -> float | None:
        return self.work_s / self.sound_s if self.sound_s else None

    def _pace(self) -> str:
        return "-" if self.real_time_factor is None else f"{self.real_time_factor:.2f}"

    def write_codes(self, path: Path) -> None:
        """All frames one after the other, as `csm codec decode` reads them."""
        from csm_mlx_app.codes import write_codes

        write_codes(path, np.concatenate([speech.codes for _, speech in self.sentences]))

    def tell(self, outputs: Outputs) -> None:
        """One line for people, and what they should know about it."""
        first = self.sentences[0][1].stats.first_audio_s if self.sentences else None
        numbers = f"{self.sound_s:.2f} s of sound in {self.work_s:.2f} s, real-time factor {self._pace()}"
        begun = "" if first is None else f", first audio after {first:.2f} s"
        where = f" -> {outputs.where}" if outputs.where and self.sound_s and not self.failed else ""
        stopped = "interrupted, kept: " if self.interrupted else "failed, after: " if self.failed else ""
        console.talk(f"{stopped}{numbers}{begun}{where}")
        if outputs.gap_s > 0.05:
            console.note(
                f"it was played with {outputs.gap_s:.1f} s of gaps, because it is made slower than it is heard; "
                "a file (-o) has none, and a smaller quantization is faster (csm convert -q)"
            )
        for sentence, speech in self.sentences:
            if speech.stats.stop in ("silence", "repeat"):
                console.note(
                    f"the model lost itself ({speech.stats.stop}) in {sentence!r:.60}; another --seed may help"
                )

    def report(self, out: str | None) -> dict[str, Any]:
        """The numbers of `--json`; times in seconds, memory in bytes."""
        first = self.sentences[0][1].stats.first_audio_s if self.sentences else None
        return {
            "model": str(self._csm.path),
            "output": out,
            "seed": self._seed,
            "frames": self.n_frames,
            "sound_s": self.sound_s,
            "load_s": self._load_s,
            "first_audio_s": first,
            "work_s": self.work_s,
            "real_time_factor": self.real_time_factor,
            "peak_memory_bytes": peak_memory_bytes(),
            "interrupted": self.interrupted,
            "sentences": [
                {"text": text, **asdict(speech.stats), "real_time_factor": speech.stats.real_time_factor}
                for text, speech in self.sentences
            ],
        }

    def tour(self, outputs: Outputs) -> None:
        """What happened and what to try next, for somebody who has just arrived."""
        here = Path(sys.executable).parent / "csm"
        on_path = shutil.which("csm")
        csm = (
            "csm"
            if on_path and Path(on_path).resolve() == here.resolve()
            else min(os.path.relpath(here), str(here), key=len)
        )
        first, second = ("--play", "--play") if outputs.played else ("-o quarter.wav", "-o earnest.wav")
        console.talk(
            f"""
What happened: {self._csm.path.name} spoke {self.n_frames} frames of {self._frame_s * 1000:.0f} ms, on this machine's \
{mx.default_device().type.name}, into {outputs.where}.

Try next:
  # any words; or from a file (-f), or from a pipe; into a file (-o), or aloud (--play)
  {csm} say "It is a quarter to four." {first}

  # fetch Sesame's own model, quantize it to 4 bits (once), and speak with it
  {csm} convert unsloth/csm-1b weights/csm-1b-q4 -q
  {csm} say "Now in earnest." --model csm-1b-q4 {second}

  # what this machine has and lacks; and everything else
  {csm} doctor
  {csm} --help"""
        )
