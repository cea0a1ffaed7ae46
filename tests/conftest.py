"""What every process that runs tests sets first, as an entry point of the program does."""

from __future__ import annotations

from secure_dagu.wire import process

process.prepare()
