"""The guides to certificates: their commands run as written, and what they name exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from secure_dagu.cli.main import COMMANDS, parse
from secure_dagu.security.mapping import parse_rules

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/how-to/offline-root.md", ROOT / "docs/how-to/own-ca.md", ROOT / "pki/POLICY.md"]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_offline_root_is_set_up_by_the_commands_of_its_guide(tmp_path: Path) -> None:
    stick, words = tmp_path / "stick", tmp_path / "ca-passphrase"
    stick.mkdir()
    words.touch(mode=0o600)
    words.write_text("in a safe, on paper\n")
    steps = blocks(ROOT / "docs/how-to/offline-root.md", "sh")
    assert len(steps) == 5
    for step, host in zip(steps, ("offline", "online", "offline", "online", "offline"), strict=True):
        home = tmp_path / host
        (home / ".dagu").mkdir(parents=True, exist_ok=True)
        # A person is asked for the passphrase; a test gives it as a unit of systemd would.
        script = step.replace("--passphrase", f"--passphrase-file {words}").replace("/media/stick", str(stick))
        env = {
            "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        } | ({"CREDENTIALS_DIRECTORY": str(tmp_path)} if host == "offline" else {})  # fmt: skip
        done = subprocess.run(
            ["sh", "-euc", script],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "online/.dagu/pki/ca.key").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_can_be_typed(page: Path) -> None:
    for line in re.findall(r"(?:^|`)(secure-dagu [^`\n…|]*)", page.read_text(), re.MULTILINE):
        words = shlex.split(line.replace("URI", "x"))[1:]
        if words[1:2] and "--pkcs11" not in words:
            assert parse(words).command in COMMANDS, line


def test_the_rules_of_the_guide_are_rules() -> None:
    (rules,) = (
        found
        for text in blocks(ROOT / "docs/how-to/own-ca.md", "yaml")
        if (found := YAML(typ="safe").load(text)["peer"].get("identity_rules"))
    )
    assert len(parse_rules(rules)) == 5
