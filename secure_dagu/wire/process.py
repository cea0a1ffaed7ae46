"""Process-wide settings that gRPC reads once, when it is first imported."""

from __future__ import annotations

import os
import sys

from secure_dagu.trimmed import TYPING, trimmed


def prepare() -> None:
    """Set what must stand before the first import of grpc, and import it.

    A second call, by a second service, changes nothing.

    Raises:
        RuntimeError: grpc is imported already, so that the settings would be ignored without a word.
    """
    environment = os.environ  # noqa: TID251  written for the C core, not read as configuration
    if "grpc" in sys.modules:
        if environment.get("GRPC_ENABLE_FORK_SUPPORT") == "0":
            return
        raise RuntimeError("grpc was imported before its process settings were made")
    # Children are started while the core runs; its fork handlers make one in four of them hang or die.
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # The server's sockets are read by the thread that waits for the calls. The core's own pool would hand each message
    # through two or three more threads first: 590 instead of 490 us of processor time a heartbeat (1,000 workers).
    environment.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    # Otherwise the core writes lines of its own format to stderr, between ours.
    environment.setdefault("GRPC_VERBOSITY", "NONE")
    with trimmed(instead=TYPING):
        import grpc.aio  # noqa: F401 - the others find it
