"""The hand-written manifests as kustomize puts them together, and the golden files: the same, as it was reviewed.

`python -m tests.deploy.manifests` writes the golden files anew, `--check` says whether they are up to date, as `make
deploy-check` asks. Only these need kustomize; whatever else is tested is tested of the golden files and the sources.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.deploy.charts import GOLDEN, ROOT, Document, documents
from tests.needs import built

MANIFESTS = ROOT / "deploy/kubernetes"
RENDERED = GOLDEN / "kubernetes"
OVERLAYS = {folder.name: folder for folder in sorted((MANIFESTS / "overlays").iterdir())}


def rendered(name: str) -> str:
    """Return what kustomize makes of an overlay."""
    return subprocess.run(
        [built("kustomize"), "build", OVERLAYS[name]], capture_output=True, text=True, timeout=120, check=True
    ).stdout


@cache
def overlay(name: str) -> list[Document]:
    """Return the documents of an overlay's golden file; they are shared, so leave them as they are."""
    return documents((RENDERED / f"{name}.yaml").read_text())


def kustomization(folder: Path) -> Any:
    """Return what a folder's kustomization says."""
    return YAML(typ="safe").load((folder / "kustomization.yaml").read_text())


def reached(folder: Path) -> list[Path]:
    """Return this folder and every one that its kustomization builds on."""
    below = [folder / name for name in kustomization(folder)["resources"] if (folder / name).is_dir()]
    return [folder, *(found for one in below for found in reached(one.resolve()))]


if __name__ == "__main__":
    made = {RENDERED / f"{known}.yaml": rendered(known) for known in OVERLAYS}
    stale = [file for file, text in made.items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv and stale:
        sys.exit(
            f"not what kustomize makes of {stale[0].stem}: python -m tests.deploy.manifests, and read what changed"
        )
    for file in stale:
        file.write_text(made[file])
