"""Steps that are more than a command: foreach, routers, people, containers, builds; the old forms of all of them."""

from __future__ import annotations

import pytest

from secure_dagu.dag.legacy import TYPES
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Approval, DagType, PathInput, Routed, Step
from secure_dagu.errors import DefinitionError


def steps(text: str) -> dict[str, Step]:
    return {step.name: step for step in load_definition(text, file="a.yaml").main.steps}


def problems(text: str, *, is_child: bool = False) -> str:
    with pytest.raises(DefinitionError) as caught:
        load_definition(text, file="a.yaml", is_child=is_child)
    return caught.value.why


# ------------------------------------------------------------------------------------------------------------- foreach


def test_the_body_of_a_foreach_has_names_and_dependencies_of_its_own() -> None:
    found = steps(
        "defaults: {timeout_sec: 7}\n"
        "steps:\n"
        "  - run: x\n"
        "  - foreach:\n"
        "      items: [a, {b: [1]}]\n"
        "      as: file\n"
        "      key: ${foreach.file}\n"
        "      max_concurrent: 3\n"
        "      collect: {size: '${steps.one.outputs.size}'}\n"
        "      steps:\n"
        "        - {id: one, name: First, run: wc}\n"
        "        - {run: y, depends: one, dependencies: [data.csv]}\n"
    )
    body = found["foreach_2"].foreach
    assert body is not None
    assert (body.items, body.as_name, body.key, body.max_concurrent) == (
        *(["a", {"b": [1]}], "file", "${foreach.file}"),
        3,
    )
    assert body.collect == {"size": "${steps.one.outputs.size}"}
    assert [(step.name, step.depends, step.timeout_s) for step in body.steps] == [
        ("First", (), 7.0),
        ("cmd_2", ("First",), 7.0),
    ]


def test_files_that_a_body_depends_on_are_files_of_the_run() -> None:
    text = "steps: [{foreach: {items: [1], steps: [{run: x, dependencies: [a.csv]}]}}]"
    assert load_definition(text).main.file_dependencies == ("a.csv",)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("{foreach: {items: [1], steps: [{id: a, run: x}]}}, {name: a, run: x}", ["foreach", "collides"]),
        ("{id: a, foreach: {items: [1], steps: [{run: x, depends: b}]}}, {id: b, run: x}", ["non-existent step", "b"]),
        ("{foreach: {items: [1], steps: []}}", ["steps[0].foreach.steps", "non-empty sequence"]),
        ("{foreach: {items: [1], steps: [[{run: x}]]}}", ["nested lists"]),
        ("{foreach: {items: [1], steps: [{id: h, action: human.task, with: {prompt: x}}]}}", ["human.task", "foreach"]),
        ("{foreach: {items: 1, steps: [{run: x}]}}", ["foreach.items", "JSON array"]),
        ("{foreach: {items: [1], steps: [{run: x}], as: index}}", ["foreach.as", "index"]),
        ("{foreach: {items: [1], steps: [{run: x}], each: 1}}", ["invalid keys", "each"]),
        ("{foreach: {items: [1], steps: [{run: x}], max_concurrent: 0}}", ["foreach.max_concurrent", "1 to 1000"]),
        ("{run: x, foreach: {items: [1], steps: [{run: x}]}}", ["foreach cannot stand beside run"]),
        ("{foreach: {items: [1], steps: [{run: x}]}, parallel: [1]}", ["parallel is only for dag.run"]),
        ("{foreach: ~}", ["foreach needs items and steps"]),
    ],
)
def test_a_wrong_foreach_is_refused(text: str, fragments: list[str]) -> None:
    why = problems(f"steps: [{text}]")
    assert [fragment for fragment in fragments if fragment not in why] == []


# ------------------------------------------------------------------------------------------------------------- routers


def test_a_target_of_a_route_waits_for_its_router() -> None:
    found = steps(
        "steps:\n"
        "  - {id: r, action: router.route, with: {value: $MODE, routes: {fast: [a], 're:^s': [b, C]}}}\n"
        "  - {id: a, run: x}\n  - {id: b, run: x, depends: a}\n  - {id: c, name: C, run: x}\n"
    )
    assert found["a"].routed == Routed(router="r", patterns=("fast",))
    assert found["b"].routed == Routed(router="r", patterns=("re:^s",))
    assert [found[name].depends for name in ("a", "b", "C")] == [("r",), ("a", "r"), ("r",)]


@pytest.mark.parametrize(
    ("head", "routes", "fragments"),
    [
        ("", "{a: [x], b: [x]}", ["two routes", "x"]),
        ("", "{a: [nope]}", ["non-existent step", "nope"]),
        ("", "{'re:(': [x]}", ["re:(", "regexp"]),
        ("", "{a: []}", ["at least one step"]),
        ("", "{}", ["non-empty"]),
        ("type: chain\n", "{a: [x]}", ["router.route is not allowed in a chain"]),
    ],
)
def test_a_wrong_router_is_refused(head: str, routes: str, fragments: list[str]) -> None:
    text = f"{head}steps: [{{id: r, action: router.route, with: {{value: a, routes: {routes}}}}}, {{id: x, run: x}}]"
    why = problems(text)
    assert [fragment for fragment in fragments if fragment not in why] == []


# -------------------------------------------------------------------------------------------------------------- people


def test_an_approval_goes_back_to_a_step_by_its_runtime_name() -> None:
    found = steps(
        "steps:\n  - {id: a, name: Build, run: x}\n  - {id: b, run: x, depends: a}\n"
        "  - {id: c, run: x, depends: b, approval: {prompt: p, input: [WHO, WHY], required: [WHO], rewind_to: a}}\n"
        "  - {id: d, run: x, approval: {rewind_to: d}}\n"
    )
    assert found["c"].approval == Approval(prompt="p", input=("WHO", "WHY"), required=("WHO",), rewind_to="Build")
    assert found["d"].approval == Approval(rewind_to="d")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("{id: a, run: x, approval: {rewind_to: b}}, {id: b, run: x, depends: a}", ["rewind_to", "itself or one that"]),
        ("{id: a, run: x, approval: {rewind_to: c}}", ["rewind_to", "no such step"]),
        ("{run: x, approval: {input: [A], required: [B]}}", ["required", "B", "not among input"]),
        ("{run: x, approval: {prompts: x}}", ["invalid keys", "prompts", "prompt"]),
        (
            "{action: dag.run, with: {dag: c}, approval: {prompt: x}, worker_selector: {a: b}}",
            ["approval", "worker_selector"],
        ),
        ("{action: human.task, with: {prompt: x}}", ["human.task needs an explicit id"]),
        ("{id: a, action: human.task, with: {prompt: x}, retry_policy: {limit: 1, interval_sec: 0}}", ["retry_policy"]),
        (
            "{id: a, action: human.task, with: {prompt: x}, timeout_sec: 1, stdout: o, output: O}",
            ["timeout_sec", "out"],
        ),
        (
            "{id: a, action: human.task, with: {prompt: x, form: {type: object, properties: {a: {type: array}}}}}",
            ["form.properties.a", "flat"],
        ),
        ("{id: a, action: human.task, with: {form: {}}}", ["human.task needs prompt"]),
    ],
)
def test_what_people_cannot_do_is_refused(text: str, fragments: list[str]) -> None:
    why = problems(f"steps: [{text}]")
    assert [fragment for fragment in fragments if fragment not in why] == []


def test_a_human_task_takes_only_what_it_can_of_the_defaults() -> None:
    found = steps(
        "defaults: {timeout_sec: 5, env: [A=1], continue_on: failed, retry_policy: {limit: 1, interval_sec: 0}}\n"
        "steps: [{id: h, action: human.task, with: {prompt: Sure?}}]\n"
    )["h"]
    assert (found.timeout_s, found.retry, len(found.env), found.continue_on.failure) == (0.0, None, 1, True)


def test_a_human_task_belongs_to_root_runs_only() -> None:
    task = "steps: [{id: h, action: human.task, with: {prompt: x}}]"
    assert "root runs only" in problems(f"steps: []\n---\nname: c\n{task}")
    assert "root runs only" in problems(task, is_child=True)
    assert "not allowed in handler_on" in problems(
        "steps: []\nhandler_on: {exit: {id: h, action: human.task, with: {prompt: x}}}"
    )


# ---------------------------------------------------------------------------------------------------------- containers


def test_a_container_is_kept_as_written_and_names_the_step() -> None:
    found = steps(
        "steps:\n  - {run: x, container: box}\n"
        "  - {run: y, container: {image: alpine, env: [A=1], pull_policy: true, ports: ['80:80']}}\n"
    )
    assert (found["docker_1"].kind, found["docker_1"].container) == ("command", "box")
    assert found["docker_2"].container == {"image": "alpine", "env": ["A=1"], "pull_policy": True, "ports": ["80:80"]}


@pytest.mark.parametrize(
    ("container", "fragments"),
    [
        ("{image: a, exec: b}", ["exactly one of exec and image"]),
        ("{user: root}", ["exactly one of exec and image"]),
        ("{exec: a, volumes: [x]}", ["volumes", "only with image"]),
        ("{image: a, pull_policy: sometimes}", ["pull_policy", "always, missing, never, fallback"]),
        ("{image: a, startup: now}", ["startup", "keepalive"]),
        ("{image: a, command: [x]}", ["command", "startup: command"]),
        ("{image: a, healthcheck: {interval: 1s}}", ["healthcheck", "test is required"]),
        ("{image: a, healthcheck: {test: x, interval: soon}}", ["healthcheck.interval", "is not a duration"]),
        ("{image: ''}", ["container.image", "must not be empty"]),
        ("{exec: ' '}", ["container.exec", "must not be empty"]),
        ("{image: a, log_pattern: '('}", ["log_pattern", "regexp"]),
        ("{image: a, volume: [x]}", ["invalid keys", "volume", "volumes"]),
        ("[a]", ["container", "expected a map"]),
    ],
)
def test_a_wrong_container_is_refused_at_root_and_step(container: str, fragments: list[str]) -> None:
    for text in (f"container: {container}\nsteps: []", f"steps: [{{run: x, container: {container}}}]"):
        why = problems(text)
        assert [fragment for fragment in fragments if fragment not in why] == []


# -------------------------------------------------------------------------------------------------------------- builds


def test_a_build_declares_files() -> None:
    loaded = load_definition(
        "type: build\nsteps:\n"
        "  - {id: a, run: make, inputs: [{name: src, path: a.c}], outputs: [{name: bin, path: a.out}, {name: note}]}\n"
    ).main
    assert loaded.type is DagType.BUILD
    assert loaded.steps[0].path_inputs == (PathInput(name="src", path="a.c"),)
    assert [(output.name, output.path) for output in loaded.steps[0].outputs] == [("bin", "a.out"), ("note", "")]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("steps: [{run: x, inputs: [{name: a, path: b}]}]", ["type build"]),
        ("steps: [{id: a, run: x, outputs: [{name: a, path: b}]}]", ["type build"]),
        ("type: build\nsteps: [{id: a, run: x, outputs: [{name: a, path: b}, {name: c, path: d}]}]", ["at most one"]),
        ("type: build\nsteps: [{id: a, run: x, outputs: [{name: a, path: b, type: json}]}]", ["path and type"]),
        ("type: build\nsteps: [{run: x, inputs: []}]", ["inputs", "non-empty sequence"]),
        ("type: build\nsteps: [{run: x, inputs: [{name: a}]}]", ["path is required"]),
        ("type: build\nsteps: [{run: x, inputs: [{name: a, path: b}, {name: a, path: c}]}]", ["duplicate input name"]),
        ("type: build\nsteps: [{id: a, action: noop, outputs: [{name: a, path: b}]}]", ["on this host"]),
        ("type: build\ncontainer: c\nsteps: [{id: a, run: x, outputs: [{name: a, path: b}]}]", ["on this host"]),
        ("type: build\nsteps: [{id: a, run: x, stdout: ./b, outputs: [{name: a, path: b}]}]", ["stdout", "must not"]),
        (
            "type: build\nsteps: [{id: a, run: x, continue_on: {failure: true, mark_success: true}, "
            "outputs: [{name: a, path: b}]}]",
            ["mark_success", "forbidden"],
        ),
        ("type: build\nsteps: [{run: x, outputs: [{name: a, path: b}]}]", ["must define id"]),
    ],
)
def test_a_wrong_build_is_refused(text: str, fragments: list[str]) -> None:
    why = problems(text)
    assert [fragment for fragment in fragments if fragment not in why] == []


# ----------------------------------------------------------------------------------------------------------- old forms


@pytest.mark.parametrize(
    ("body", "kind", "inputs"),
    [
        (
            "{type: http, command: GET http://x/y, config: {silent: true}}",
            "http.request",
            {"method": "GET", "url": "http://x/y", "silent": True},
        ),
        ("{type: jq, command: .a, script: '{\"a\": 1}'}", "jq.filter", {"filter": ".a", "data": '{"a": 1}'}),
        (
            "{type: ssh, command: ls, config: {user: u, host: h}}",
            "ssh.run",
            {"command": "ls", "user": "u", "host": "h"},
        ),
        (
            "{type: sftp, config: {source: a, destination: b, direction: download}}",
            "sftp.download",
            {"source": "a", "destination": "b", "direction": "download"},
        ),
        (
            "{type: mail, config: {from: a, to: b, subject: c, message: d}}",
            "mail.send",
            {"from": "a", "to": "b", "subject": "c", "message": "d"},
        ),
        ("{type: archive, command: create, config: {source: a}}", "archive.create", {"source": "a"}),
        ("{type: sqlite, command: select 1, config: {dsn: d}}", "sqlite.query", {"dsn": "d", "query": "select 1"}),
        ("{type: postgres, config: {dsn: d, import: {}}}", "postgres.import", {"dsn": "d", "import": {}}),
        ("{type: redis, config: {command: GET, key: a}}", "redis.get", {"key": "a"}),
        ("{type: s3, command: list, config: {bucket: b}}", "s3.list", {"bucket": "b"}),
        ("{type: git, config: {repository: r, path: p}}", "git.checkout", {"repository": "r", "path": "p"}),
        ("{type: template, script: hi}", "template.render", {"template": "hi"}),
        ("{type: file, command: write, with: {path: p}}", "file.write", {"path": "p"}),
        ("{type: log, command: hi}", "log.write", {"message": "hi"}),
        ("{type: outputs, config: {values: {a: 1}}}", "outputs.write", {"values": {"a": 1}}),
        ("{type: router, value: v, routes: {a: [t]}}", "router.route", {"value": "v", "routes": {"a": ["t"]}}),
        ("{type: docker, command: ls, config: {image: i}}", "docker.run", {"image": "i", "command": "ls"}),
        ("{type: container, command: ls, config: {image: i}}", "container.run", {"image": "i", "command": "ls"}),
        ("{type: dag, call: c}", "dag.run", {"dag": "c"}),
        ("{type: subworkflow, call: c, params: a=1}", "dag.run", {"dag": "c", "params": "a=1"}),
        ("{type: parallel, call: c, parallel: [1]}", "dag.run", {"dag": "c"}),
        ("{type: shell, command: ls}", "command", {}),
        ("{type: command, command: ls}", "command", {}),
        ("{type: foreach, foreach: {items: [1], steps: [{run: x}]}}", "foreach", {}),
    ],
)
def test_a_type_is_the_action_that_it_is_called_now(body: str, kind: str, inputs: dict[str, object]) -> None:
    loaded = load_definition(f"steps:\n  - {body}\n  - {{id: t, run: x}}\n", file="a.yaml")
    step = loaded.main.steps[0]
    assert (step.kind, step.inputs) == (kind, inputs)
    assert kind == "foreach" or "Deprecated DAG syntax: steps[0] " in loaded.warnings[0]
    assert kind == "foreach" or "is deprecated; use `" in loaded.warnings[0]


def test_every_type_of_the_language_is_known_or_said_to_be_left_out() -> None:
    language = (
        "command shell docker container ssh sftp http mail jq archive sqlite postgres redis s3 git template file log "
        "router dag subworkflow parallel foreach outputs kubernetes k8s chat harness action"
    )
    for word in language.split():
        if word not in TYPES:
            assert "not part of this edition" in problems(f"steps: [{{type: {word}, command: x}}]")
    assert 'did you mean "sqlite"' in problems("steps: [{type: sqllite, command: x}]")
    assert 's3 has no operation "mirror"' in problems("steps: [{type: s3, command: mirror}]")


@pytest.mark.parametrize(
    ("body", "name", "operation"),
    [
        ("{action: file.write, with: {path: p}}", "file_1", "write"),
        ("{action: s3.upload, with: {bucket: b}}", "s3_1", "upload"),
        ("{action: log.write, with: {message: m}}", "log_1", ""),
        ("{action: dag.enqueue, with: {dag: c}}", "dag_1", ""),
        ("{action: dag.enqueue, with: {dag: c}, parallel: [1]}", "parallel_1", ""),
        ("{run: x}", "cmd_1", ""),
        ("{output: {a: 1}}", "step_1", ""),
    ],
)
def test_a_generated_name_begins_with_what_executes_the_step(body: str, name: str, operation: str) -> None:
    found = load_definition(f"steps: [{body}]").main.steps[0]
    assert (found.name, found.operation) == (name, operation)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        ("{action: http.request, with: {method: GET, url: [a]}}", ["with.url", "expected text"]),
        ("{action: http.request, with: {method: GET, url: u, silent: 5}}", ["with.silent", "true or false"]),
        ("{action: http.request, with: {method: GET, url: u, body: b, form: {a: b}}}", ["with.form", "excludes body"]),
        ("{action: jq.filter, with: {filter: .}}", ["exactly one of data, input"]),
        ("{action: jq.filter, with: {filter: ., data: 1, input: f}}", ["exactly one of data, input"]),
        ("{action: wait.duration, with: {duration: soon}}", ["with.duration", "1h30m"]),
        ("{action: wait.file, with: {path: p, state: there}}", ["with.state", "exists, missing"]),
        ("{action: dag.run, with: {dag: d, queue: q}}", ["invalid keys", "queue"]),
        ("{action: data.convert, with: {from: json, to: xml, data: 1}}", ["with.to", "yaml"]),
    ],
)
def test_inputs_of_actions_are_checked_when_the_file_is_loaded(body: str, fragments: list[str]) -> None:
    why = problems(f"steps:\n  - {body}\n")
    assert [fragment for fragment in fragments if fragment not in why] == []


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        ("output: {a: {from: file}}", ["output.a", "needs path"]),
        ("output: {a: {from: stdout, path: p}}", ["output.a.path", "only with from: file"]),
        ("output: {a: {from: stdout, select: .x}}", ["output.a.select", "decode"]),
        ("output: {a: {from: stdout, decode: xml}}", ["output.a.decode", "yaml"]),
        ("output: {a: {from: stderr, as: x}}", ["output.a", "invalid keys", "as"]),
        ("stdout: {outputs: {fields: {a: {select: .x}}}}", ["stdout.outputs.fields.a", "decode"]),
        ("stdout: {outputs: {select: .x}}", ["stdout.outputs.select", "decode"]),
    ],
)
def test_a_published_value_must_come_from_somewhere(body: str, fragments: list[str]) -> None:
    why = problems(f"steps:\n  - run: x\n    {body}\n")
    assert [fragment for fragment in fragments if fragment not in why] == []


def test_a_map_that_names_no_stream_is_published_as_it_is() -> None:
    assert load_definition("steps: [{run: x, output: {a: {from: me, to: you}}}]").main.steps[0].output == {
        "a": {"from": "me", "to": "you"}
    }


def test_only_what_starts_a_program_runs_in_a_container() -> None:
    assert "steps[0].container" in problems("steps: [{action: noop, container: c}]")


def test_an_input_may_be_a_reference_whatever_it_becomes() -> None:
    text = "steps:\n  - action: wait.http\n    with: {url: $U, status: '${params.s}', headers: $H}\n"
    assert load_definition(text).main.steps[0].inputs["headers"] == "$H"
