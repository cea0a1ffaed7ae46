"""Fixtures of the system tests and of the local commands serve the documentation tests as well."""

from tests.local.conftest import host
from tests.system.conftest import cluster

__all__ = ["cluster", "host"]
