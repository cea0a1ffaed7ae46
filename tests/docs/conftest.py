"""Fixtures of the system tests serve the documentation tests as well."""

from tests.system.conftest import cluster

__all__ = ["cluster"]
