"""Everything that we ship for Kubernetes, by name: from the chart, and from the manifests."""

from __future__ import annotations

from tests.deploy import charts, manifests

NAMES = (*charts.SHAPES, *(f"kubernetes/{name}" for name in manifests.OVERLAYS))


def shipped(name: str) -> list[charts.Document]:
    """Return the documents of a golden file; they are shared, so leave them as they are."""
    folder, _, overlay = name.rpartition("/")
    return manifests.overlay(overlay) if folder else charts.shape(name)
