"""What a release is made of can be built again, and says what is in it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_is_reproducible_and_comes_with_sbom_and_checksums(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "deploy/release.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (sbom,) = tmp_path.glob("*.cdx.json")
    lines = [line.split("  ") for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sums} == sums
    assert set(sums) == {wheel.name, sbom.name}
    with zipfile.ZipFile(wheel) as archive:
        assert len({info.date_time for info in archive.infolist()}) == 1
        assert {info.external_attr >> 16 & 0o777 for info in archive.infolist()} <= {0o644, 0o755, 0o664}
    bill = json.loads(sbom.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "secure-dagu"
    named = {component["name"].lower() for component in bill["components"]}
    assert {"grpcio", "cryptography", "pyopenssl", "sqlalchemy"} <= named
    assert not named & {"pytest", "mypy", "playwright"}


def test_every_requirement_is_pinned_by_version_and_hash_and_names_no_place() -> None:
    for name in ("requirements.txt", "requirements-run.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "--index" not in text
        pins = re.findall(r"^([a-z0-9][\w.-]*)(\S*).*\\$", text, re.MULTILINE | re.IGNORECASE)
        assert len(pins) > 30
        for package, version in pins:
            assert version.startswith("=="), f"{name}: {package} is not pinned"
        assert text.count("--hash=sha256:") >= len(pins)


def test_what_runs_is_locked_to_what_was_tested() -> None:
    def versions(name: str) -> dict[str, str]:
        found = re.findall(r"^([A-Za-z0-9][\w.-]*)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
        return dict(found)

    tested, runs = versions("requirements.txt"), versions("requirements-run.txt")
    assert runs.items() <= tested.items()
    assert len(runs) < len(tested)
