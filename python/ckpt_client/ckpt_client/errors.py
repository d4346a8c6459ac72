from __future__ import annotations

from typing import Optional


class CkptError(Exception):
    """What went wrong, in one line, with a code from the daemon's table (`packages/core/src/api/errors.ts`).

    `http_status` is None where no answer was involved: nothing listens there (`daemon_unreachable`), or a tensor that the
    daemon could not take (`bad_request`).
    """

    def __init__(
        self,
        code: str,
        message: str,
        rank: Optional[int] = None,
        phase: Optional[str] = None,
        tensor: Optional[str] = None,
        http_status: Optional[int] = None,
    ):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.rank = rank
        self.phase = phase
        self.tensor = tensor
        self.http_status = http_status
