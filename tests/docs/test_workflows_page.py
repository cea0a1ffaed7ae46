"""docs/reference/workflows.md is true: its examples do what stands below them, its lists of keys are those of the code.

A block ```yaml title=NAME is a workflow that is run; ```yaml title=NAME checked is one that needs a server or a
container runtime, and is validated and planned. Another block with a title is a file beside the workflows. The
```text block below a workflow says what comes of it:

    $ secure-dagu start NAME -- year=2025      a command; without one, the workflow is started
    step | text                                the whole standard output of that step
    step: failed                               the status of a step; `run` is the whole run

Below `validate` stands what it says on standard error, without times and the folder of the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import Struct

from secure_dagu.dag import actions, nodes, params, references, schema, steps, values
from secure_dagu.dag.json_schema import dag_schema
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.plan import make_plan
from secure_dagu.dag.tables import Use
from secure_dagu.dag.validate import validate
from secure_dagu.run.model import RunStatus, StepStatus
from tests.local.command import Host
from tests.runner.executors import webserver

PAGE = (Path(__file__).parents[2] / "docs/reference/workflows.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?( checked)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_1 = {"failed", "partially_succeeded", "rejected"}


class Example(Struct, frozen=True):
    """One workflow of the page, and what the page says comes of it."""

    name: str
    text: str
    runs: bool
    outcome: str

    @property
    def is_valid(self) -> bool:
        return not self.outcome.startswith("$ secure-dagu validate")


def blocks() -> Iterator[re.Match[str]]:
    yield from BLOCK.finditer(PAGE)


def examples() -> list[Example]:
    found = []
    everything = [*blocks(), None]
    for block, after in pairwise(everything):
        if block is not None and block[1] == "yaml":
            outcome = after[4] if after is not None and after[1] == "text" else ""
            found.append(Example(block[2] or "", block[4], not block[3], outcome))
    return found


EXAMPLES = examples()
VALID = [example for example in EXAMPLES if example.is_valid]
SCHEMA = Draft202012Validator(dag_schema())
FILES = {block[2]: block[4] for block in blocks() if block[1] != "yaml" and block[2]}


def test_every_workflow_has_a_name_of_its_own_and_every_one_that_runs_says_what_comes_of_it() -> None:
    names = [example.name for example in EXAMPLES]
    assert "" not in names
    assert len(names) == len(set(names))
    assert [example.name for example in EXAMPLES if example.runs and not example.outcome] == []


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.name)
def test_every_example_is_valid_and_can_be_planned(example: Example) -> None:
    found = validate(example.text, file=example.name, read_schema=lambda name: FILES[name])
    assert (found.errors, found.warnings, found.notices) == ((), (), ())
    definition = load_definition(example.text, file=example.name, read_schema=lambda name: FILES[name])
    for dag in (definition.main, *definition.locals.values()):
        make_plan(dag)


@pytest.mark.parametrize("example", VALID, ids=lambda example: example.name)
def test_every_example_is_what_the_schema_says(example: Example) -> None:
    for node in nodes.parse(example.text, file=example.name):
        assert [problem.message for problem in SCHEMA.iter_errors(nodes.plain_value(node))] == []


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.runs], ids=lambda example: example.name)
def test_every_example_does_what_stands_below_it(example: Example, host: Host) -> None:
    for name, text in FILES.items():
        host.file(name, text)
    with webserver.serving() as server:
        host.file(example.name, example.text.replace("http://localhost:8080", server.url))
        commands = re.split(r"^\$ secure-dagu (.*)\n", example.outcome, flags=re.MULTILINE)
        rounds = list(zip(commands[1::2], commands[2::2], strict=True)) or [(f"start {example.name}", commands[0])]
        for words, expected in rounds:
            if words.startswith("validate"):
                said = re.sub(r"time=\S+", "time=…", host.run(*shlex.split(words)).err)
                assert said.replace(f"{host.folder}/", "") == expected
            else:
                check(host, example.name.removesuffix(".yaml"), shlex.split(words), expected)


def check(host: Host, dag: str, words: list[str], expected: str) -> None:
    done = host.run(*words)
    seen = host.status(dag)
    found = {node["step"]["name"]: node for node in seen["nodes"]}
    found |= {key: node for key, node in seen.items() if re.fullmatch("on[A-Z][a-z]+", key)}
    printed: dict[str, list[str]] = {}
    said = {"run": "succeeded"}
    for line in expected.splitlines():
        if prints := re.fullmatch(r"(\S+) \|(?: (.*))?", line):
            printed.setdefault(prints[1], []).append(prints[2] or "")
        else:
            name, _, word = line.partition(": ")
            said[name] = word
    outcome = {name: StepStatus(node["status"]).name.lower() for name, node in found.items()}
    outcome["run"] = RunStatus(seen["status"]).name.lower()
    assert {name: outcome.get(name) for name in said} == said, done.err
    assert {name: output(found[name]) for name in printed} == {k: "\n".join(v) for k, v in printed.items()}, done.err
    assert done.code == (1 if said["run"] in EXIT_1 else 0), done.err


def output(node: Mapping[str, Any]) -> str:
    path = Path(node.get("stdout", "") or "/nonexistent")
    return path.read_text().rstrip("\n") if path.is_file() else ""


def test_every_link_within_the_page_leads_to_a_heading() -> None:
    headings = {line.lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)}
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", PAGE) if link not in headings} == set()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize(("title", "table"), [("Keys of a workflow", schema.ROOT), ("Keys of a step", schema.STEP)])
def test_the_keys_are_those_of_the_tables_and_say_what_is_not_acted_on(title: str, table: schema.Table) -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| ([a-z ]+) \| (.*) \|$", section(title), re.MULTILINE)
    assert {name: kinds.replace(" or ", "|") for name, kinds, _ in rows} == {n: key.kinds for n, key in table.items()}
    uses = {"accepted": Use.ACCEPTED, "refused:": Use.REFUSED}
    said = {name: uses.get(text.split()[0], Use.ACTED_ON) for name, _, text in rows}
    assert said == {name: key.use for name, key in table.items()}


def test_the_actions_and_their_inputs_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| `([a-z0-9.<>]+)` \| (.*?) \| [^|]* \|$", section("Actions"), re.MULTILINE)
    said = {name: re.findall(r"`(\w+)`(\*?)", inputs) for name, inputs in rows}
    known = {**actions.ACTIONS, "redis.<command>": actions.REDIS}
    assert said == {
        name: [(key, "*" if key in action.required else "") for key in action.keys] for name, action in known.items()
    }


def test_the_context_and_its_short_forms_are_those_of_the_references() -> None:
    rows = re.findall(r"^\| `context\.([a-z_.]+)` \| `([a-z_.]+)` \|", section("Values"), re.MULTILINE)
    assert {short: long for long, short in rows} == references.FROZEN_ALIASES


def test_the_status_numbers_are_those_of_the_code() -> None:
    runs, steps_of_runs = section("Statuses").split("Numbers in status documents:")[1].split("Those of steps:")
    for text, known in ((runs, RunStatus), (steps_of_runs, StepStatus)):
        assert {name: int(n) for name, n in re.findall(r"`([a-z_]+)` (\d)", text)} == {s.name.lower(): s for s in known}


def test_the_limits_are_those_of_the_code() -> None:
    limits = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", section("Limits"), re.MULTILINE))
    number = {
        "text": nodes.MAX_TEXT_BYTES // 2**20,
        "nesting": nodes.MAX_DEPTH,
        "nodes": nodes.MAX_NODES,
        "aliases": nodes.MAX_ALIASES,
        "size after expanding aliases (one a node, one more for each 32 characters)": nodes.MAX_EXPANDED,
        "documents": nodes.MAX_DOCUMENTS,
        "dependencies of one chain": steps.MAX_EDGES,
        "one field after its references were replaced": values.MAX_RESOLVED // 2**20,
        "parameters given by the caller": params.MAX_INPUT_BYTES // 2**20,
    }
    assert {name: int(limits[name].split()[0].replace(",", "")) for name in number} == number
