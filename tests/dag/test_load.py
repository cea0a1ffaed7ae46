"""Loading: what a file means, and which sentence its author gets when it is wrong."""

from __future__ import annotations

import time

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag, DagType, EnvEntry, Step
from secure_dagu.dag.plan import make_plan
from secure_dagu.errors import DefinitionError


def step(body: str) -> Step:
    """Return the only step of a file whose step is `body` (flow style)."""
    return load_definition(f"steps:\n  - {body}\n").main.steps[0]


def dag(text: str, **options: object) -> Dag:
    return load_definition(text, **options).main  # type: ignore[arg-type]  # options are the keyword parameters


def problems(text: str, *, strict: bool = False) -> str:
    with pytest.raises(DefinitionError) as caught:
        load_definition(text, file="a.yaml", strict=strict)
    assert "a.yaml" in str(caught.value)
    return caught.value.why


# ---------------------------------------------------------------------------------------------------- what steps mean


def test_one_line_is_a_command_and_more_are_a_script() -> None:
    assert (step("run: echo hi").kind, step("run: echo hi").commands) == ("command", ("echo hi",))
    script = load_definition("steps:\n  - run: |\n      a\n      b\n").main.steps[0]
    assert (script.kind, script.script, script.name) == ("script", "a\nb\n", "script_1")


def test_a_command_list_turns_scalars_and_one_key_maps_into_text() -> None:
    assert step("run: [echo a, false, 1.10, 'x: y', {k: v}, '', ~]").commands == (
        *("echo a", "false", "1.1", "x: y", "k: v"),
    )


def test_legacy_forms_are_read_and_said_to_be_deprecated() -> None:
    loaded = load_definition(
        "steps:\n"
        "  - command: echo a\n"
        "  - script: |\n      print(1)\n    command: python3 -u\n"
        "  - exec: {command: /bin/true, args: [1, a]}\n"
        "  - {call: other, params: 'x=1'}\n"
        "  - echo short\n"
        "  - {type: log, config: {message: hi}}\n"
    )
    steps = loaded.main.steps
    assert [item.kind for item in steps] == ["command", "script", "exec", "dag.run", "command", "log.write"]
    assert (steps[1].shell.program, steps[1].shell.args) == ("python3", ("-u",))
    assert steps[2].inputs == {"command": "/bin/true", "args": ["1", "a"]}
    assert steps[3].inputs == {"dag": "other", "params": "x=1"}
    assert len(loaded.warnings) == 6
    old_shell = load_definition("steps: [{command: a, shell: bash, shell_args: [-x]}]").warnings
    assert [warning.split("use ")[1] for warning in old_shell] == ["`with.shell`", "`with.shell_args`", "`run`"]
    assert all("Deprecated DAG syntax" in warning for warning in loaded.warnings)


def test_an_output_map_alone_publishes_values() -> None:
    published = step("output: {a: 1, b: {from: stdout}}")
    assert (published.kind, published.output) == ("noop", {"a": 1, "b": {"from": "stdout"}})


def test_an_output_name_loses_its_dollar() -> None:
    assert step("{run: x, output: $NAME}").output == "NAME"


def test_a_whole_step_is_read() -> None:
    read = step(
        "{id: a, name: A, description: d, run: x, with: {shell: 'bash -x', shell_args: [-u]}, env: {B: 1, A: 2}, "
        "working_dir: w, preconditions: [ok, {condition: $B, expected: 're:^1$', negate: true}], stdout: o.txt, "
        "stderr: {artifact: e.txt}, log_output: merged, outputs: [{name: n, type: json}], dependencies: ['*.csv'], "
        "continue_on: {failed: true, exit_code: [1, 2], output: 're:x', mark_success: true}, timeout_sec: 3, "
        "retry_policy: {limit: 2, interval_sec: $WAIT, backoff: true}, signal_on_stop: SIGINT, "
        "repeat_policy: {condition: x, expected: y, interval_sec: 0}}"
    )
    assert (read.name, read.shell.program, read.shell.args) == ("A", "bash", ("-x", "-u"))
    assert read.env == (EnvEntry(name="B", value="1"), EnvEntry(name="A", value="2"))
    assert read.preconditions[1].negate
    assert read.retry is not None
    assert (read.retry.limit, read.retry.interval_s, read.retry.backoff) == ("2", "$WAIT", 2.0)
    assert read.repeat is not None
    assert read.repeat.mode == "until"
    assert read.continue_on.exit_codes == (1, 2)
    assert (read.stdout.path, read.stderr.artifact, read.merged_logs) == ("o.txt", "e.txt", True)


def test_a_sub_dag_step_selects_workers_and_fans_out() -> None:
    read = step(
        "{action: dag.run, with: {dag: c, params: {k: v}}, worker_selector: {gpu: true}, "
        "parallel: {items: [1, {a: b}], max_concurrent: 2}}"
    )
    assert read.name == "parallel_1"
    assert read.worker_selector == {"gpu": "true"}
    assert read.parallel is not None
    assert (read.parallel.items, read.parallel.max_concurrent) == ((1, {"a": "b"}), 2)


# ------------------------------------------------------------------------------------------------- names and ordering


def test_generated_names_move_to_the_next_free_number() -> None:
    names = [item.name for item in dag("steps:\n  - run: a\n  - {run: b, name: cmd_1}\n  - {run: c, id: x}\n").steps]
    assert names == ["cmd_2", "cmd_1", "x"]


def test_graph_steps_depend_only_on_what_they_name() -> None:
    steps = dag("steps:\n  - {id: a, name: A, run: x}\n  - [{run: y}, {run: z, depends: [a, A]}]\n").steps
    assert [item.depends for item in steps] == [(), (), ("A",)]


def test_a_chain_waits_for_every_member_of_the_entry_before() -> None:
    text = "type: chain\nsteps: [{id: a, run: x}, [{id: b, run: x}, {id: c, run: x}], {id: d, run: x}]"
    assert [item.depends for item in dag(text).steps] == [(), ("a",), ("a",), ("b", "c")]
    assert dag(text).type is DagType.CHAIN


def test_a_map_of_steps_is_ordered_by_name_unless_strict() -> None:
    assert [item.name for item in dag("steps: {b: {run: x}, a: {run: y}}").steps] == ["a", "b"]
    assert "steps must be a sequence" in problems("steps: {b: {run: x}}", strict=True)


def test_defaults_go_under_steps_and_handlers() -> None:
    loaded = dag(
        "defaults: {timeout_sec: 9, env: {A: 1}, retry_policy: {limit: 1, interval_sec: 0}}\n"
        "steps: [{run: x}, {run: y, timeout_sec: 1, env: {B: 2}}]\nhandler_on: {exit: {run: z}}\n"
    )
    assert [item.timeout_s for item in loaded.steps] == [9.0, 1.0]
    assert [[entry.name for entry in item.env] for item in loaded.steps] == [["A"], ["A", "B"]]
    assert loaded.handlers["exit"].name == "onExit"
    assert loaded.handlers["exit"].timeout_s == 9.0


# -------------------------------------------------------------------------------------------------- the whole document


def test_a_root_document_is_read() -> None:
    loaded = dag(
        "group: g\nconsts: [{port: 8443}, {base: 'h:${consts.port}'}, {late: '${consts.none}'}]\n"
        "env:\n  - A=1\n  - {B: 1.0, C: ~}\n  - D=\ndotenv: [a.env]\nshell: bash -eu\nlabels: 'a,B env=Prod'\n"
        "secrets: [{name: TOKEN, provider: env, key: T}, {name: K, ref: team/key}]\nworker_selector: local\n"
        "max_clean_up_time_sec: 1\nartifacts: {enabled: true, dir: out}\nsteps: []\n"
    )
    assert loaded.consts == {"port": 8443, "base": "h:8443", "late": "${consts.none}"}
    assert [(entry.name, entry.value) for entry in loaded.env] == [("A", "1"), ("B", "1"), ("C", "<nil>"), ("D", "")]
    assert loaded.labels == ("a", "b", "env=prod")
    assert (loaded.worker_selector, loaded.run_locally) == ({}, True)
    assert (loaded.shell.program, loaded.shell.args) == ("bash", ("-eu",))


@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        ("steps: [{run: x}]", False),
        ("artifacts: {dir: out}\nsteps: [{run: x}]", False),
        ("steps: [{run: 'cp x $DAG_RUN_ARTIFACTS_DIR'}]", True),
        ("steps: [{run: 'cp x ${context.paths.artifacts_dir}'}]", True),
        ("steps: [{run: x, stdout: {artifact: a.txt}}]", True),
        ("artifacts: {enabled: false}\nsteps: [{run: 'echo $DAG_RUN_ARTIFACTS_DIR'}]", False),
    ],
)
def test_artifacts_are_enabled_by_use(text: str, enabled: bool) -> None:
    assert dag(text).artifacts.enabled is enabled


def test_the_name_comes_from_the_caller_the_file_or_the_path() -> None:
    text = "steps: []"
    assert dag(text, file="dir/my-flow.yaml").name == "my-flow"
    assert dag("name: own\n" + text, file="my.yaml").name == "own"
    assert dag("name: own\n" + text, file="my.yaml", name="forced").name == "forced"


def test_later_documents_are_local_sub_dags() -> None:
    loaded = load_definition("---\n---\nsteps: []\n---\nname: child\nsteps: [{run: x}]\n---\n", file="m.yaml")
    assert loaded.main.name == "m"
    assert list(loaded.locals) == ["child"]


def test_keys_of_other_editions_are_accepted_and_ignored() -> None:
    loaded = load_definition(
        "llm: {model: m}\nharness: {a: b}\nharnesses: {a: {b: c}}\nkubernetes: {a: b}\ntools: [a/b@1]\nsteps: []"
    )
    assert (loaded.main.extra, loaded.warnings) == ({}, ())


def test_what_services_look_at_is_kept_as_written() -> None:
    loaded = dag(
        "run_config: {disable_param_edit: true}\nwebhook: {forward_headers: [x-a]}\notel: {enabled: false}\nsteps: []"
    )
    assert loaded.extra == {
        "run_config": {"disable_param_edit": True},
        "webhook": {"forward_headers": ["x-a"]},
        "otel": {"enabled": False},
    }


# -------------------------------------------------------------------------------------------- the base configuration


def test_the_base_configuration_lies_under_every_document() -> None:
    base = (
        "env: [A=base]\nshell: bash\nlabels: [team]\ndefaults: {env: [D=1], timeout_sec: 3}\n"
        "handler_on: {exit: {run: b}}\n"
        "worker_selector: {os: linux}\nconsts: [{x: 1}, {y: 2}]\ntype: chain\n"
    )
    text = (
        "env: {A: own}\nlabels: [mine]\nworker_selector: {gpu: 1}\nconsts: [{x: 9}]\nsteps: [{run: x}, {run: y}]\n"
        "---\nname: c\nsteps: []"
    )
    loaded = load_definition(text, base_config=base)
    assert [entry.value for entry in loaded.main.env] == ["base", "own"]
    assert loaded.main.labels == ("team", "mine")
    assert loaded.main.worker_selector == {"os": "linux", "gpu": "1"}
    assert loaded.main.consts == {"y": 2, "x": 9}
    assert loaded.main.steps[1].depends == ("cmd_1",)
    assert loaded.main.steps[0].timeout_s == 3.0
    assert list(loaded.main.handlers) == ["exit"]
    assert loaded.locals["c"].shell.program == "bash"
    assert loaded.locals["c"].handlers == {}


def test_handlers_of_the_base_do_not_apply_to_a_child_run() -> None:
    loaded = load_definition("steps: []", base_config="handler_on: {exit: {run: b}}", is_child=True)
    assert loaded.main.handlers == {}


def test_an_empty_list_resets_what_the_base_gives() -> None:
    assert dag("env: []\nsteps: []", base_config="env: [A=1]").env == ()


# ------------------------------------------------------------------------------------------------------- what is wrong

S = "steps: [{run: x}]\n"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (S + "stepz: 1", ["a.yaml:2:1", "invalid keys", "stepz", 'did you mean "steps"']),
        ("steps: [{comand: x}]", ["steps[0]", "invalid keys", "comand", 'did you mean "command"']),
        (S + "handlerOn: {}", ["invalid keys", "handlerOn", "handler_on", "use snake_case keys"]),
        (S + "continueOn: failed", ["invalid keys", "continueOn", "continue_on", "use snake_case keys"]),
        (S + "x-foo: 1", ["invalid keys", "x-foo"]),
        ("steps: [{run: x, dir: /}]", ["invalid keys", "dir", "working_dir"]),
        ("steps: [{run: x, precondition: y}]", ["precondition", "preconditions"]),
        ("steps: [{run: x, executor: y}]", ["executor", "action"]),
        (S + "steps: []", ["already defined", "steps"]),
        ("steps: [", ["yaml"]),
        ("", ["empty"]),
        ("# only a comment", ["empty"]),
        ("[a]", ["document 1", "map"]),
        ("steps: 1", ["steps", "sequence"]),
        (S + "---\nsteps: []", ["document 2", "name"]),
        (S + "---\nname: c\nsteps: []\n---\nname: c\nsteps: []", ["c", "unique"]),
        (S + "consts: {a: 1}", ["consts", "list"]),
        (S + "consts: [a]", ["consts[0]", "single-entry mappings"]),
        (S + "consts: [{a: 1, b: 2}]", ["consts[0]", "exactly one key"]),
        (S + "consts: [{a-b: 1}]", ["consts key", "invalid"]),
        (S + "consts: [{a: [1]}]", ["const", "literal string, number, or boolean"]),
        (S + "consts: [{a: .nan}]", ["const", "finite"]),
        (S + "params: [a-b=1]", ["params", "a-b"]),
        (S + "params: [{name: a, minLength: 1}]", ["invalid keys", "minLength", "min_length"]),
        (S + "params: [{name: a, type: integer, default: x}]", ["cannot coerce"]),
        (S + "params: {schema: s.json}", ["params", "s.json", "cannot be read"]),
        (S + "env: 1", ["env", "map or array"]),
        (S + "env: [1A=2]", ["env", "1A"]),
        (S + "env: [JUST]", ["env", "JUST"]),
        (S + "secrets: [{name: DAG_NAME, provider: env, key: x}]", ["secrets", "DAG_NAME", "collides"]),
        (S + "secrets: [{name: DAGU_X, provider: env, key: x}]", ["secrets", "must not start with DAGU_"]),
        (S + "secrets: [{name: X, provider: vault, key: x}]", ["vault", "not supported"]),
        ("steps: [{id: a, run: x}, {id: a, run: x}]", ["duplicate step ID", "unique"]),
        ("steps: [{name: a, run: x}, {name: a, run: x}]", ["step name", "unique"]),
        ("steps: [{id: a-b, run: x}]", ["invalid step ID format"]),
        ("steps: [{id: Output, run: x}]", ["reserved word"]),
        (f"steps: [{{id: {'a' * 41}, run: x}}]", ["step ID must be at most 40"]),
        (f"steps: [{{name: {'a' * 256}, run: x}}]", ["step name must be at most 255"]),
        ("steps: [{id: a, name: b, run: x}, {name: a, run: x}]", ["conflicts"]),
        ("steps: [{id: a, run: x}, {name: a, run: x}]", ["conflicts"]),
        ("steps: [{id: alpha, run: x, depends: alpah}]", ["depends on non-existent step", 'did you mean "alpha"']),
        ("steps: [{run: x, depends: {a: b}}]", ["depends", "string or array"]),
        ("steps: [{run: x, depends: 5}]", ["depends", "string or array"]),
        ("steps: [{run: x, depends: true}]", ["depends", "string or array"]),
        ("steps: [{action: dag.run, with: {dag: x}, parallel: 5}]", ["steps[0].parallel", "text, a list, or a map"]),
        ("steps: [{action: dag.run, with: {dag: x}, parallel: {items: 5}}]", ["steps[0].parallel", "text, a list"]),
        ("type: chain\nsteps: [{run: x, depends: []}]", ["depends field is not allowed"]),
        ("steps: [{id: a, run: x, outputs: []}]", ["outputs", "non-empty sequence"]),
        ("steps: [{id: a, run: x, outputs: ~}]", ["outputs", "non-empty sequence"]),
        ("steps: [{run: x, outputs: [{name: a}]}]", ["outputs", "must define id"]),
        ("steps: [{id: a, run: x, outputs: [{type: json}]}]", ["outputs", "name is required"]),
        ("steps: [{id: a, run: x, outputs: [{name: 1a}]}]", ["outputs", "name must match"]),
        ("steps: [{id: a, run: x, outputs: [{name: n}, {name: n}]}]", ["duplicate output name"]),
        ("steps: [{id: a, run: x, outputs: [{name: n, kind: x}]}]", ["unknown field"]),
        ("steps: [{id: a, run: x, outputs: [{name: n, type: int}]}]", ["type must be"]),
        (S + "preconditions: {a: b}", ["preconditions"]),
        (S + "preconditions: [{command: x}]", ["preconditions", "command"]),
        (S + "preconditions: [{condition: ' '}]", ["preconditions", "condition"]),
        (S + "preconditions: [{condition: a, eval: b, expected: c}]", ["condition", "eval"]),
        (S + "preconditions: [{eval: b}]", ["preconditions", "expected"]),
        (S + "preconditions: [{condition: a, negate: 1}]", ["preconditions", "negate"]),
        (S + "preconditions: [{condition: a, expected: 're:('}]", ["preconditions", "regexp"]),
        (S + "preconditions: [{condition: a, expected: 're:'}]", ["preconditions", "regexp"]),
        ("steps: [{run: x, parallel: [1]}]", ["parallel"]),
        ("steps: [{action: dag.run, with: {dag: a}, parallel: {items: [1], max: 1}}]", ["parallel", "max"]),
        (
            "steps: [{action: dag.run, with: {dag: a}, parallel: {items: [1], max_concurrent: x}}]",
            ["steps[0].parallel.max_concurrent", "integer"],
        ),
        (
            "steps: [{action: dag.run, with: {dag: a}, parallel: {items: [1], max_concurrent: 1001}}]",
            ["parallel.max_concurrent", "1000"],
        ),
        ("steps: [{run: x, dependencies: ['$X']}]", ["dependencies", "literal"]),
        ("steps: [{run: x, dependencies: [../x]}]", ["dependencies", "relative"]),
        ("steps: [{run: x, action: noop}]", ["run", "action", "exclude"]),
        ("steps: [{run: x, script: y}]", ["script cannot stand beside run"]),
        ("steps: [{name: a}]", ["a step needs run"]),
        ("steps: [{run: ' '}]", ["must not be empty"]),
        ("steps: [{run: [[a]]}]", ["steps[0].run[0]"]),
        ("steps: [{run: x, with: {shell_args: [a]}}]", ["shell_args needs shell"]),
        ("steps: [{run: x, with: {shell: direct}}]", ["direct"]),
        ("steps: [{action: http.request}]", ["http.request needs method", "http.request needs url"]),
        ("steps: [{action: k8s.run}]", ["k8s.run", "not part of this edition"]),
        ("steps: [{action: owner/repo@v1}]", ["owner/repo@v1", "not part of this edition"]),
        ("steps: [{action: noop.p}]", ["unknown action", "noop"]),
        ("steps: [{action: log.write, with: {mesage: x}}]", ["invalid keys", "mesage", "log.write needs message"]),
        ("steps: [{action: outputs.write, with: {values: {}}}]", ["values", "non-empty"]),
        ("steps: [{run: x, worker_selector: {a: b}}]", ["worker_selector"]),
        ("steps: [{run: x, timeout_sec: -1}]", ["timeout_sec", "integer"]),
        ("steps: [{run: x, timeout_sec: ten}]", ["timeout_sec", "found text"]),
        ("steps: [{run: x, retry_policy: {limit: 1}}]", ["interval_sec is required"]),
        ("steps: [{run: x, repeat_policy: {repeat: until}}]", ["until needs condition or exit_code"]),
        ("steps: [{run: x, signal_on_stop: KILL}]", ["signal_on_stop", "SIGKILL"]),
        ("steps: [{run: x, stdout: o, stderr: o}]", ["same file"]),
        ("steps: [{run: x, stdout: {artifact: ../x}}]", ["artifact", "relative"]),
        (S + "artifacts: {enabled: 1}", ["artifacts.enabled", "true or false"]),
        (S + "type: wrong", ["type", "graph"]),
        (S + "type: agent", ["agent", "not part of this edition"]),
        (S + "type: controller", ["controller", "not part of this edition"]),
        (S + "tasks: []", ["tasks", "not part of this edition"]),
        (S + "labels: a\ntags: b", ["tags", "labels"]),
        (S + "name: a/b", ["name", "a/b"]),
        (S + f"name: {'a' * 41}", ["name", "at most 40"]),
        (S + "hist_retention_days: 1\nhist_retention_runs: 1", ["hist_retention_runs", "exclude"]),
        (S + "timeout_sec: yes", ["timeout_sec", "found text"]),
        (S + "params: [{type: integer, default: 4}]", ["a.yaml:2:10", "params[0]", "a definition needs name"]),
    ],
)
def test_a_wrong_file_is_refused_with_a_stable_sentence(text: str, fragments: list[str]) -> None:
    why = problems(text)
    assert [fragment for fragment in fragments if fragment not in why] == []


def test_every_problem_of_a_file_is_listed_with_its_place() -> None:
    why = problems("steps:\n  - run: x\n    timeout_sec: a\n  - actoin: y\nenvv: 1\n").splitlines()
    assert [line.split(": ")[0] for line in why] == ["a.yaml:5:1", "a.yaml:3:18", "a.yaml:4:5", "a.yaml:4:5"]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("steps:\n- {id: a, run: x}\n- {run: y, depends: [a, c]}\n", "3:25", "non-existent"),
        ("steps:\n- {id: a, run: x}\n- run: y\n  depends: c\n", "4:12", "non-existent"),
        ("steps:\n- {id: a, run: x}\n- {run: y, id: a}\n", "3:16", "duplicate step ID"),
        ("steps:\n- {name: a, run: x}\n- {run: y, name: a}\n", "3:18", "must be unique"),
        ("steps:\n- {name: a, run: x}\n- {run: y, name: b, id: a}\n", "3:25", "conflicts"),
        ("steps:\n- {run: x, id: a-b}\n", "2:16", "invalid step ID format"),
        ("steps:\n- {id: a, run: x, outputs: [{name: b}, {name: b}]}\n", "2:47", "duplicate output name"),
        ("steps:\n- {id: a, run: x, outputs: [{name: b, type: c}]}\n", "2:45", "type must be"),
        ("steps:\n- {run: x, stdout: {artifact: ../y}}\n", "2:31", "relative path"),
        ("steps:\n- {id: a, run: x, output: {b: {from: stdout, decde: json}}}\n", "2:46", 'did you mean "decode"?'),
        ("steps:\n- {run: x, dependencies: [a, /b]}\n", "2:30", "relative paths"),
        ("steps:\n- {run: x, approval: {input: [A], required: [A, B]}}\n", "2:49", "not among input"),
        ("steps:\n- {run: x, approval: {prompt: p, rewind_to: b}}\n", "2:45", "no such step"),
        (
            "steps:\n- {id: r, action: router.route, with: {value: 1, routes: {x: [b, c]}}}\n- {id: b, run: x}\n",
            *("2:66", "non-existent"),
        ),
        ("secrets:\n- {key: x, name: DAG_NAME, provider: env}\n" + S, "2:18", "collides"),
        ("secrets:\n- {key: x, name: A, provider: fil}\n" + S, "2:31", "not supported"),
        (
            "actions: {my: {input_schema: {type: object, properties: {n: {type: integer}}}, template: {run: x}}}\n"
            "steps:\n- action: my\n  with: {m: 1, n: x}\n",
            *("4:19", "n does not fit"),
        ),
        (S + "---\nname: s\n" + S + "---\nname: s\n" + S, "6:7", "unique"),
        ("- a\n", "1:1", "expected a map"),
    ],
)
def test_a_mistake_is_shown_once_and_where_it_was_made(text: str, place: str, said: str) -> None:
    (line,) = problems(text).splitlines()
    assert line.startswith(f"a.yaml:{place}: ")
    assert said in line


def test_problems_beyond_the_limit_are_counted() -> None:
    why = problems("steps:\n" + "  - {runn: x}\n" * 100).splitlines()
    assert len(why) == 51
    assert why[-1] == "and 150 more"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("name: a\n" + S, ["entrypoint", "name"]),
        (S + "---\n", ["document 2", "empty"]),
        ("env: {}\n", ["steps"]),
        ("steps: []", ["steps", "non-empty"]),
    ],
)
def test_validation_is_stricter_than_a_run(text: str, fragments: list[str]) -> None:
    load_definition(text)
    why = problems(text, strict=True)
    assert [fragment for fragment in fragments if fragment not in why] == []


def test_an_error_never_shows_an_authored_value_of_the_wrong_kind() -> None:
    assert "hunter2" not in problems("steps: [{run: x, timeout_sec: hunter2, mail_on_error: hunter2}]")


def test_a_definition_of_five_thousand_steps_loads_and_plans_in_no_time() -> None:
    text = "steps:\n" + "".join(
        f"  - {{id: s{n}, name: step {n}, run: echo {n}, depends: [{f's{n - 1}' if n else ''}]}}\n" for n in range(5000)
    )
    started = time.process_time()
    assert len(make_plan(load_definition(text).main).order) == 5000
    assert time.process_time() - started < 5, "it takes about a second; a bound for slow machines"
