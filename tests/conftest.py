"""What every process that runs tests sets first, as an entry point of the program does."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

from secure_dagu.wire import process

process.prepare()
# Whoever runs the tests by `nohup` or in the background ignores these, and so would every program that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes on a busy machine is nothing that a property is judged by.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
