"""Build what a release is made of: a wheel that anybody can build again bit by bit, its SBOM, and their checksums.

    python deploy/release.py dist

The wheel is built twice, in two folders, from what is committed; both must be the same. Times in it are those of the
commit. The SBOM (CycloneDX 1.6, JSON) lists what runs, with versions and hashes, from `requirements-run.txt`.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"


def main(out: Path) -> int:
    """Write wheel, SBOM and SHA256SUMS; return 1 when two builds differ."""
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (built(Path(folder), name) for name in ("one", "two"))
        if first.read_bytes() != second.read_bytes():
            print(f"{first.name}: two builds of the same commit differ", file=sys.stderr)
            return 1
        wheel = out / first.name
        wheel.write_bytes(first.read_bytes())
    sbom = out / f"{wheel.name.removesuffix('.whl')}.cdx.json"
    bill_of_materials(sbom)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in (wheel, sbom)]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    print("\n".join(sums))
    return 0


def built(folder: Path, name: str) -> Path:
    """Build the wheel of the current commit in a folder of its own."""
    source = folder / name / "source"
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    when = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True)
    env = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": when.stdout.strip(), "PYTHONHASHSEED": "0"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import os; os.umask(0o022); {BUILD}"],
        cwd=source, env=env, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (wheel,) = (folder / name).glob("*.whl")
    return wheel


def bill_of_materials(path: Path) -> None:
    """Write the SBOM of what runs."""
    cyclonedx = Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run(
        [
            cyclonedx, "requirements", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
            "--sv", "1.6", "--of", "JSON", "-o", path, ROOT / "requirements-run.txt",
        ],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute()))
