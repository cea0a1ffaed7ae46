"""What every process that runs tests sets first, as an entry point of the program does."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from secure_dagu.wire import process

process.prepare()
# How long an example takes on a busy machine is nothing that a property is judged by.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
