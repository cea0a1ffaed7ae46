"""Keep what a process knows, keys and secrets, out of core files and from other processes of its user (threat T29)."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def shield() -> None:
    """Forbid core files of this process and its children; nobody but root may read its memory, environment or files.

    A step runs as the same user as whoever runs it, and could read secrets of other steps from there. The second half
    is Linux's (`PR_SET_DUMPABLE`, prctl(2)) and ends for a child with the program that it becomes.
    """
    with contextlib.suppress(ValueError, OSError):  # the limit may be lower already
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
