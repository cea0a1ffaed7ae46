"""How shells are chosen and called."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from secure_dagu.dag.model import Shell
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.shell import Chosen, choose, command_argv, script_argv, shebang

SH = Chosen("sh", (), is_explicit=False)


def shell(program: str, *args: str) -> Shell:
    return Shell(program=program, args=args)


@pytest.mark.parametrize(
    ("step", "dag", "default", "host", "expected"),
    [
        (shell("zsh", "-f"), shell("ksh"), "bash", "/bin/dash", Chosen("zsh", ("-f",), is_explicit=True)),
        (Shell(), shell("ksh"), "bash", "/bin/dash", Chosen("ksh", (), is_explicit=False)),
        (Shell(), Shell(), "bash -x", "/bin/dash", Chosen("bash", ("-x",), is_explicit=False)),
        (Shell(), Shell(), "", "/bin/dash", Chosen("/bin/dash", (), is_explicit=False)),
        (Shell(), Shell(), "", "", SH),
    ],
)
def test_the_nearest_shell_is_chosen(step: Shell, dag: Shell, default: str, host: str, expected: Chosen) -> None:
    assert choose(step, dag, default, host) == expected


@pytest.mark.parametrize(
    ("chosen", "argv"),
    [
        (SH, ["sh", "-e", "-c", "x"]),
        (Chosen("bash", ("-e",), is_explicit=False), ["bash", "-e", "-c", "x"]),
        (Chosen("bash", ("-x", "-c"), is_explicit=False), ["bash", "-x", "-e", "-c", "x"]),
        (Chosen("/bin/bash", (), is_explicit=True), ["/bin/bash", "-c", "x"]),
        (Chosen("python3", ("-I",), is_explicit=False), ["python3", "-I", "-c", "x"]),
    ],
)
def test_a_command_is_one_argument_of_the_shell(chosen: Chosen, argv: list[str]) -> None:
    assert command_argv(chosen, "x") == argv


@pytest.mark.parametrize("args", [("-c", "evil"), ("-ec",), ("-lc", "x"), ("-c", "-c")])
def test_a_shell_argument_that_carries_a_command_is_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(DefinitionError, match="carries a command"):
        command_argv(Chosen("bash", args, is_explicit=True), "x")


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\n"])
def test_a_value_with_a_line_break_cannot_add_a_command(text: str) -> None:
    with pytest.raises(DefinitionError, match="line break"):
        command_argv(SH, text)


@pytest.mark.parametrize("args", [("-c",), ("-s",), ("-es",)])
def test_a_script_is_what_the_shell_reads(args: tuple[str, ...]) -> None:
    with pytest.raises(DefinitionError, match="script form"):
        script_argv(Chosen("bash", args, is_explicit=True), "/s")


def test_a_script_is_called_by_its_path() -> None:
    assert script_argv(SH, "/s") == ["sh", "-e", "/s"]
    assert script_argv(Chosen("bash", ("--norc",), is_explicit=True), "/s") == ["bash", "--norc", "/s"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo", None),
        (" #!/bin/sh", None),
        ("#!/bin/sh -e\r\nx", ["/bin/sh", "-e"]),
        ("#! /usr/bin/env 'my python' -I\n", ["/usr/bin/env", "my python", "-I"]),
    ],
)
def test_the_first_line_of_a_script_names_its_interpreter(text: str, words: list[str] | None) -> None:
    assert shebang(text) == words


@pytest.mark.parametrize("text", ["#!\n", "#!   \nx", "#!'sh\n", "#!sh \\\n"])
def test_a_first_line_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="first line"):
        shebang(text)


PWSH = Chosen("pwsh", (), is_explicit=True)
NIX = Chosen("/nix/bin/nix-shell", (), is_explicit=False, packages=("jq", "curl"))


@pytest.mark.parametrize("program", ["/usr/bin/PWSH", "powershell.exe", "C:\\Windows\\PowerShell.EXE"])
def test_powershell_gets_the_text_framed_so_that_errors_stop_it(program: str) -> None:
    *argv, text = command_argv(Chosen(program, (), is_explicit=True), "Write-Error no")
    assert argv == [program, "-NoProfile", "-NonInteractive", "-Command"]
    assert text.startswith("$ErrorActionPreference='Stop';")
    assert "Write-Error no" in text


def test_a_carrier_that_is_configured_is_used() -> None:
    assert command_argv(Chosen("pwsh", ("-noprofile", "-c"), is_explicit=True), "x")[:-1] == [
        "pwsh", "-noprofile", "-NonInteractive", "-c",
    ]  # fmt: skip
    assert command_argv(Chosen("cmd", ("/C",), is_explicit=True), "dir") == ["cmd", "/C", "dir"]
    assert command_argv(Chosen("nix-shell", ("--impure", "--run"), is_explicit=True), "x") == [
        "nix-shell", "--impure", "--run", "x",
    ]  # fmt: skip


def test_nix_shell_gets_its_packages() -> None:
    packages = ["--pure", "-p", "jq", "-p", "curl"]
    assert command_argv(NIX, "x") == [NIX.program, *packages, "--run", "set -e; x"]
    assert script_argv(NIX, "/s") == [NIX.program, *packages, "--run", "sh -e /s"]


@pytest.mark.parametrize(
    ("program", "arg"),
    [
        ("pwsh", "-EncodedCommand"), ("pwsh", "-enc"), ("powershell", "-Command:evil"), ("cmd", "/cecho"),
        ("nix-shell", "--run=x"), ("fish", "-cfoo"), ("sh", "-cecho"), ("dash", "-lc"),
    ],
)  # fmt: skip
def test_an_argument_with_a_command_in_it_is_refused_in_every_family(program: str, arg: str) -> None:
    with pytest.raises(DefinitionError, match=f"{arg}.*carries a command"):
        command_argv(Chosen(program, (arg, "x"), is_explicit=True), "x")


def test_an_unknown_shell_gets_nothing_added() -> None:
    assert command_argv(Chosen("fish", ("-x",), is_explicit=False), "y") == ["fish", "-x", "-c", "y"]
    assert script_argv(Chosen("fish", ("-x",), is_explicit=False), "/s") == ["fish", "-x", "/s"]


def test_scripts_of_powershell_and_cmd_are_files() -> None:
    assert script_argv(PWSH, "/s.ps1") == [
        "pwsh", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", "/s.ps1",
    ]  # fmt: skip
    assert script_argv(Chosen("cmd.exe", (), is_explicit=True), "/s.bat") == ["cmd.exe", "/c", "/s.bat"]


@pytest.mark.parametrize("args", [("-Command",), ("-C",), ("-EncodedCommand", "x"), ("-File", "other.ps1")])
def test_powershell_runs_no_other_script_than_the_steps(args: tuple[str, ...]) -> None:
    with pytest.raises(DefinitionError, match="script form"):
        script_argv(Chosen("pwsh", args, is_explicit=True), "/s.ps1")


@pytest.mark.parametrize("call", [command_argv, script_argv])
def test_packages_are_for_nix_shell_only(call: Callable[[Chosen, str], list[str]]) -> None:
    with pytest.raises(DefinitionError, match="shell_packages"):
        call(Chosen("bash", (), is_explicit=True, packages=("jq",)), "x")


def test_direct_is_no_shell() -> None:
    with pytest.raises(DefinitionError, match="direct"):
        choose(Shell(), Shell(), "direct", "")
