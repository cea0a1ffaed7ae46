"""Do a piece of work in a copy of this process, so that the memory it takes is given back.

Reading settings imports pydantic and a YAML parser: 12 MiB that a service would keep for good, a fifth of what an idle
worker may use. The result is small.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import NoReturn, TypeVar

from secure_dagu.errors import ConfigError

T = TypeVar("T")


def run_apart(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a forked child. Call it before any thread is started.

    `work` must return a value that pickle takes, and touch nothing of this process that others see.

    Raises:
        ConfigError: what `work` raised, or that the child died.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(work, writing)
    os.close(writing)
    with open(reading, "rb") as source:
        data = source.read()
    _, status = os.waitpid(child, 0)
    if not data:
        raise ConfigError("the configuration could not be read", why=f"its reader died (wait status {status})")
    done, value = pickle.loads(data)  # noqa: S301 - written by our own copy, through a pipe that nobody else has
    if done:
        return value  # type: ignore[no-any-return]  # pickle says nothing of types
    what, why, fix = value
    raise ConfigError(what, why=why, fix=fix)


def _answer(work: Callable[[], object], writing: int) -> NoReturn:
    """Write the outcome and leave without cleaning up what belongs to the parent."""
    try:
        try:
            data = pickle.dumps((True, work()))
        except ConfigError as problem:
            data = pickle.dumps((False, (problem.what, problem.why, problem.fix)))
        with open(writing, "wb") as sink:
            sink.write(data)
    finally:
        os._exit(0)
