"""How shells are chosen and called."""

from __future__ import annotations

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
