"""The wheel is whole: it brings the profiles, and a CA can be made from it alone."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env={"PATH": os.environ["PATH"], "HOME": str(cwd)} | env,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_makes_a_ca_from_its_own_profiles(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pki", "secure_dagu"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    backend = "from setuptools import build_meta; build_meta.build_wheel('..')"  # what pip would call, less its search
    run(sys.executable, "-c", backend, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("secure_dagu/pki/profiles.toml") == (ROOT / "pki/profiles.toml").read_bytes()
        assert "secure_dagu/py.typed" in names
        assert not [name for name in names if name.startswith(("tests/", "bench/", "pki/"))]
    # A throwaway environment with our dependencies, but with secure_dagu from the wheel and not from this tree.
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    (libraries,) = place.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(libraries)
    program: list[str | Path] = [place / "bin" / "python", "-m", "secure_dagu.cli.main"]
    env = {
        "PYTHONPATH": os.pathsep.join([str(libraries), *site.getsitepackages()]),
        "DAGU_HOME": str(tmp_path / "home"),
    }
    run(*program, "pki", "init", "--advertise", "ci.example.com", cwd=tmp_path, **env)
    assert (tmp_path / "home" / "pki" / "coordinator.crt").exists()
    where = run(place / "bin" / "python", "-c", "import secure_dagu.pki.profiles as p; print(p.profiles_path())",
                cwd=tmp_path, **env)  # fmt: skip
    assert Path(where.strip()).is_relative_to(place)
