"""How a reply ends: what the language model's history, CSM's session and the user are told of it."""

import numpy as np

import csm_mlx
from csm_mlx.text import speakable
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.heard import Heard
from csm_mlx_app.assistant.job import History, Job
from csm_mlx_app.assistant.records import Recording
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.sound.device import RATE_HZ, Sound


class Endings:
    """Each method is for a job that is closed: nothing more comes of it."""

    def __init__(
        self, engine: Engine, history: History, sound: Sound, report: Report, recording: Recording | None = None
    ):
        self._engine, self._history, self._sound, self._report = engine, history, sound, report
        self._recording = recording

    def finished(self, job: Job) -> None:
        """All of it was heard."""
        self._history.add(job.text, job.written)
        self._tell_turn(job, job.written, interrupted_s=None, n_played=job.n_samples)

    def failed(self, job: Job) -> None:
        """As if the user had not been answered."""
        self._engine.session.rewind(job.before)
        self._tell_turn(job, "", interrupted_s=None, n_played=0)

    def dropped(self, job: Job) -> None:
        """The user's turn was not over: none of this ever was."""
        self._engine.session.rewind(job.before)
        self._report.turn(job.turn).forget()

    def interrupted(self, job: Job, n_played: int, t_s: float) -> None:
        """`n_played` samples of all that was written had been heard: history and session keep just that."""
        heard = job.heard(n_played)
        self._cut_session(job, heard)
        self._history.add(job.text, heard.text)
        self._report.emit("interrupted", turn=job.turn, heard=heard.text.strip(), t_s=t_s)
        n_heard = 0 if job.base is None else max(0, n_played - job.base)
        self._tell_turn(job, heard.text, interrupted_s=t_s, n_played=n_heard)

    def _cut_session(self, job: Job, heard: Heard) -> None:
        """Back to before the clause that was cut, and of that clause the words and frames that were heard."""
        if not job.spoken:
            return
        session = self._engine.session
        cut = job.spoken[min(heard.clause, len(job.spoken) - 1)]
        assert cut.before is not None  # it is forgotten only when a later clause is heard
        session.rewind(cut.before)
        n_before = sum(len(spoken.clause.text) for spoken in job.spoken[: heard.clause])
        words = speakable(heard.text[n_before:]).strip()
        n_frames = round(heard.n_samples / self._engine.csm.frame_size)
        if words and n_frames and cut.codes is not None:
            session.add(csm_mlx.Turn(speaker=self._engine.speaker, text=words, codes=cut.codes[:n_frames]))

    def _keep_sound(self, job: Job, n_played: int) -> None:
        """What was heard of a reply, where the user wants a recording."""
        if self._recording is not None and job.sound:
            self._recording.keep(job.turn, "reply", np.concatenate(job.sound)[:n_played])

    def _tell_turn(self, job: Job, heard: str, interrupted_s: float | None, n_played: int) -> None:
        self._keep_sound(job, n_played)
        times = self._report.turn(job.turn)
        latency = times.latency_ms()
        if interrupted_s is not None and times.speech_end_s is not None:
            latency["interrupted"] = round(1000 * (interrupted_s - times.speech_end_s))
        factor = times.real_time_factor
        self._report.emit(
            "turn",
            turn=job.turn,
            transcript=job.text,
            reply=job.written.strip(),
            heard=heard.strip(),
            latency_ms=latency,
            played_ms=round(1000 * n_played / RATE_HZ),
            real_time_factor=None if factor is None else round(factor, 3),
            underruns=self._sound.n_underruns,
            error=job.error,
        )
        self._report.finish(job.turn)
