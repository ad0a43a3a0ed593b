"""What computes: loaded by the worker's thread, and used by no other."""

from dataclasses import dataclass

import csm_mlx
from csm_mlx_app.assistant.replies import Replier
from csm_mlx_app.assistant.scribe import Scribe


@dataclass(frozen=True)
class Engine:
    """What the worker's thread loads and then uses alone."""

    csm: csm_mlx.Csm
    session: csm_mlx.CsmSession
    replier: Replier
    speaker: int
    scribe: Scribe | None = None
    """What recognizes the user, where that computes in this thread too."""

    @property
    def user(self) -> int:
        """The user's speaker number in CSM's context."""
        return 1 if self.speaker == 0 else 0
