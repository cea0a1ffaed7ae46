"""The chart as Helm renders it, and the golden files: the same, as it was reviewed.

`python -m tests.deploy.charts` writes the golden files anew; read the difference before you commit it. Only the
comparison of the two needs Helm; whatever else is tested of the chart is tested of the golden files.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.needs import built

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/secure-dagu"
GOLDEN = Path(__file__).with_name("golden")
KUBERNETES = "1.34.0"
APIS = ("cert-manager.io/v1", "monitoring.coreos.com/v1", "keda.sh/v1alpha1")
SHAPES = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*-values.yaml"))}
Document = dict[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run helm to its end."""
    return subprocess.run([built("helm"), *words], capture_output=True, text=True, timeout=120, check=False)


def template(
    *words: str, release: str = "dagu", apis: tuple[str, ...] = APIS, chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    """Render with these further flags; it may fail."""
    known = [word for api in apis for word in ("--api-versions", api)]
    return helm("template", release, str(chart), "--namespace", "flows", "--kube-version", KUBERNETES, *known, *words)


def rendered(name: str) -> str:
    """Return what a shape renders to, hooks included; sources that are files of their own are only named."""
    done = template("--values", str(SHAPES[name]))
    assert done.returncode == 0, done.stderr
    text = done.stdout.rstrip() + "\n"
    for placeholder, block in _sources():
        text = text.replace(block, placeholder)
    return text


@cache
def shape(name: str) -> list[Document]:
    """Return the documents of a shape's golden file, whole; they are shared, so leave them as they are."""
    text = (GOLDEN / f"{name}.yaml").read_text()
    for placeholder, block in _sources():
        text = text.replace(placeholder, block)
    return documents(text)


def _sources() -> list[tuple[str, str]]:
    found = []
    for file in sorted((CHART / "files").iterdir()):
        indent = "  " if file.suffix == ".yml" else "    "
        block = "\n".join(f"{indent}{line}" for line in file.read_text().splitlines())
        found.append((f"{indent}# (files/{file.name})", block))
    return found


def notes(folder: Path, *words: str) -> str:
    """Return what `helm install` says at the end; only a cluster gets to see it, so it is rendered as a ConfigMap."""
    copy = folder / "chart"
    shutil.copytree(CHART, copy)
    text = (copy / "templates/NOTES.txt").read_text()
    (copy / "templates/notes.yaml").write_text(
        f'{{{{- define "told" -}}}}{text}{{{{- end -}}}}\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: told}}\n'
        'data:\n  told: |\n    {{- include "told" . | nindent 4 }}\n'
    )
    done = template(*words, "--show-only", "templates/notes.yaml", chart=copy)
    assert done.returncode == 0, done.stderr
    return str(documents(done.stdout)[0]["data"]["told"])


def documents(text: str) -> list[Document]:
    """Return the documents in a rendered text."""
    return [one for one in YAML(typ="safe").load_all(text) if one]


def one(found: list[Document], kind: str, name: str) -> Document:
    """Return the document of this kind and name."""
    return next(item for item in found if item["kind"] == kind and item["metadata"]["name"] == name)


def pod_of(document: Document) -> Document | None:
    """Return the pod that it makes, as a document with metadata and spec; None if it makes none."""
    match document["kind"]:
        case "Pod":
            return document
        case "CronJob":
            found = document["spec"]["jobTemplate"]["spec"]["template"]
        case "Deployment" | "StatefulSet" | "Job":
            found = document["spec"]["template"]
        case _:
            return None
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    for known in SHAPES:
        (GOLDEN / f"{known}.yaml").write_text(rendered(known))
