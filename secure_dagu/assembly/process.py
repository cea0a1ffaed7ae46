"""What every process has: its end by signals, its memory at rest, a word to systemd when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

from secure_dagu.config.load import notify_socket


def settle() -> None:
    """Settle down after the start: what is there stays, so the garbage collector need not walk it; and say so."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    tell_systemd("READY=1")


def tell_systemd(word: str) -> None:
    """Tell the service manager how this process stands (sd_notify), if one started it and wants to know."""
    where = notify_socket()
    if where[:1] not in ("/", "@"):
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(word.encode(), address)


@contextlib.contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` at each SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        tell_systemd("STOPPING=1")
        call()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def signals_twice() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Return an event that the first SIGTERM or SIGINT sets, and one that the second sets."""
    first, second = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (second if first.is_set() else first).set()

    with on_signals(told):
        yield first, second


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Event]:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    with on_signals(stop.set):
        yield stop
