"""Settings of a whole document: schedules, mail, limits, defaults of actions; what the base configuration adds."""

from __future__ import annotations

from typing import Any

import pytest

from secure_dagu.dag.load import load_definition
from secure_dagu.dag.model import Dag, DagRetry, DagType, Resources
from secure_dagu.errors import DefinitionError

S = "steps: []\n"


def dag(text: str, **options: Any) -> Dag:
    return load_definition(S + text, file="a.yaml", **options).main


def problems(text: str, **options: Any) -> str:
    with pytest.raises(DefinitionError) as caught:
        load_definition(S + text, file="a.yaml", **options)
    return caught.value.why


def test_every_setting_is_read_into_its_field() -> None:
    found = dag(
        "retry_policy: {limit: '3', backoff: true}\nskip_if_successful: true\ncatchup_window: 2d12h\n"
        "overlap_policy: latest\nhist_retention_days: 3\ncontainer: {image: alpine}\n"
        "resources: {limits: {cpu: 500m, memory: 1Gi}}\ns3: {region: r}\nredis: {host: h, port: 1}\n"
        "smtp: {host: m, port: '25'}\nmail_on: {failure: true, success: false}\n"
        "error_mail: {from: a@b, to: [c@d], prefix: p, attach_logs: true}\nregistry_auths: {r.io: {auth: x}, q: y}\n"
    )
    assert found.retry == DagRetry(limit=3, interval_s=60.0, backoff=2.0, max_interval_s=3600.0)
    assert (found.skip_if_successful, found.catchup_window, found.overlap_policy) == (True, "2d12h", "latest")
    assert (found.retention_days, found.retention_runs) == (3, 0)
    assert found.container == {"image": "alpine"}
    assert found.resources == Resources(cpu_millicores=500, memory_bytes=2**30)
    assert found.step_defaults == {
        "s3": {"region": "r"},
        "redis": {"host": "h", "port": 1},
        "smtp": {"host": "m", "port": "25"},
    }
    assert found.mail_on == {"failure": True, "success": False}
    assert found.mails == {"error_mail": {"from": "a@b", "to": ["c@d"], "prefix": "p", "attach_logs": True}}
    assert found.registry_auths == {"r.io": {"auth": "x"}, "q": "y"}


def test_a_backoff_of_nothing_is_none() -> None:
    for nothing in ("false", "0", "0.0"):
        retry = dag(f"retry_policy: {{limit: 1, backoff: {nothing}}}").retry
        assert retry is not None
        assert retry.backoff == 0.0


def test_no_days_of_retention_are_the_default() -> None:
    assert dag("hist_retention_days: 0").retention_days == dag("").retention_days == 30


@pytest.mark.parametrize(
    ("written", "size"),
    [("1024", 1024), ("1k", 1000), ("1.5M", 1_500_000), ("2Gi", 2 * 2**30), ("1ki", 1024), ("1T", 10**12)],
)
def test_memory_has_decimal_and_binary_suffixes(written: str, size: int) -> None:
    assert dag(f"resources: {{limits: {{memory: {written}}}}}").resources.memory_bytes == size


@pytest.mark.parametrize(("written", "millicores"), [("0.5", 500), ("2", 2000), ("250m", 250), ("0.001", 1)])
def test_cpu_is_in_cores_or_millicores(written: str, millicores: int) -> None:
    assert dag(f"resources: {{limits: {{cpu: {written}}}}}").resources.cpu_millicores == millicores


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("resources: {limits: {cpu: 0}}", ["resources.limits.cpu", "0.001"]),
        ("resources: {limits: {cpu: 1.5x}}", ["resources.limits.cpu"]),
        ("resources: {limits: {memory: 0}}", ["resources.limits.memory"]),
        ("resources: {limits: {memory: 1Xi}}", ["resources.limits.memory"]),
        ("resources: {limit: {}}", ["invalid keys", "limit", "limits"]),
        ("retry_policy: {interval_sec: 1}", ["retry_policy", "limit is required"]),
        ("retry_policy: {limit: '${params.n}'}", ["retry_policy.limit", "literal"]),
        ("retry_policy: {limit: 1, interval_sec: 0}", ["interval_sec", "at least 1"]),
        ("retry_policy: {limit: 1, backoff: 1}", ["backoff", "greater than 1"]),
        ("hist_retention_runs: 0", ["hist_retention_runs", "at least 1"]),
        ("overlap_policy: never", ["overlap_policy", "skip, all, latest"]),
        ("catchup_window: soon", ["catchup_window", "2d12h"]),
        ("schedule: '* * * *'", ["invalid cron expression"]),
        ("mail_on: {failed: true}", ["invalid keys", "failed", "failure"]),
        ("smtp: {host: h, password: p, oauth: {provider: google_refresh}}", ["exclude each other", "client_id"]),
        ("smtp: {host: h, oauth: {provider: me}}", ["provider", "microsoft"]),
        ("ssh: {host: h}\ncontainer: c", ["ssh", "container", "exclude"]),
        ("queue: a b", ["queue", "no name of a queue"]),
        ("smtp: {host: h, port: smtps}", ["smtp.port", "number of a port"]),
        ("ssh: {host: h, user: u, port: ssh}", ["ssh.port", "number of a port"]),
        ("s3: {buckett: b}", ["invalid keys", "buckett", "bucket"]),
        ("registry_auths: {r: {user: x}}", ["invalid keys", "user"]),
        ("webhook: {headers: [a]}", ["invalid keys", "headers"]),
        ("worker_selector: {a: ~}", ["worker_selector", "a label's value"]),
        ("worker_selector: {a: [1]}", ["worker_selector.a", "expected text"]),
        ("worker_selector: here", ["worker_selector", "local"]),
        ("shell: direct", ["shell", "direct"]),
    ],
)
def test_a_wrong_setting_is_refused(text: str, fragments: list[str]) -> None:
    why = problems(text)
    assert [fragment for fragment in fragments if fragment not in why] == []


def test_several_active_runs_are_said_to_be_deprecated() -> None:
    assert load_definition(S + "max_active_runs: 1").warnings == ()
    assert "Deprecated DAG syntax: max_active_runs" in load_definition(S + "max_active_runs: 3").warnings[0]


def test_an_artifact_action_enables_artifacts_even_in_a_body() -> None:
    text = "steps: [{foreach: {items: [1], steps: [{action: artifact.list}]}}]"
    assert load_definition(text).main.artifacts.enabled


# -------------------------------------------------------------------------------------------- the base configuration


@pytest.mark.parametrize(
    ("base", "own", "field", "expected"),
    [
        ("mail_on: {failure: true}", "mail_on: {success: true}", "mail_on", {"success": True}),
        (
            "smtp: {host: a, port: 1}",
            "smtp: {host: b}",
            "step_defaults",
            {"smtp": {"host": "b", "port": 1}},
        ),
        (
            "smtp: {host: a, password: x}",
            "smtp: {oauth: {provider: google_service_account, service_account_json: j}}",
            "step_defaults",
            {"smtp": {"oauth": {"provider": "google_service_account", "service_account_json": "j"}}},
        ),
        (
            "retry_policy: {limit: 1, interval_sec: 9}",
            "retry_policy: {limit: 2}",
            "retry",
            DagRetry(limit=2),
        ),
        ("webhook: {forward_headers: [a]}", "webhook: {}", "extra", {"webhook": {}}),
        ("labels: a", "labels: {b: c}", "labels", ("a", "b=c")),
        ("tags: a", "labels: b", "labels", ("a", "b")),
        ("labels: a", "labels: []", "labels", ()),
        ("dotenv: a.env", "dotenv: [b.env]", "dotenv", ("a.env", "b.env")),
        ("hist_retention_days: 3", "hist_retention_runs: 5", "retention_runs", 5),
        ("type: chain", "", "type", DagType.CHAIN),
        ("type: chain", "type: graph", "type", DagType.GRAPH),
        ("working_dir: /w", "", "working_dir", "/w"),
        ("name: base", "", "name", "a"),
        ("container: {image: a, user: u}", "container: {image: b}", "container", {"image": "b", "user": "u"}),
        ("worker_selector: {a: 1}", "worker_selector: local", "run_locally", True),
    ],
)
def test_what_the_document_says_wins_over_the_base(base: str, own: str, field: str, expected: object) -> None:
    assert getattr(dag(own, base_config=base), field) == expected


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ("[A=1, B=2]", "[B=3, C=4]", "A=1 B=3 C=4"),
        ("{A: 1, B: 2}", "{B: 3}", "A=1 B=3"),
        ("[{name: A, default: 1}, {B: 2, C: 3}]", "{C: 4}", "A=1 B=2 C=4"),
        ("[A=1]", "[{name: A, type: integer, default: 5}, B=2]", "A=5 B=2"),
        ("A=1", "[B=2]", "B=2"),
        ("[A=1]", "B=2", "B=2"),
        ("[A=1, place]", "[B=2]", "B=2"),
        ("[A=1]", "[place]", "=place"),
        ("{type: object, properties: {A: {type: string, default: x}}}", "[B=2]", "B=2"),
        ("[A=1]", "{type: object, properties: {B: {type: string, default: x}}}", "B=x"),
        ("[A=1]", "", "A=1"),
    ],
)
def test_parameters_of_the_base_lie_under_those_of_the_document(base: str, own: str, expected: str) -> None:
    found = dag(f"params: {own}" if own else "", base_config=f"params: {base}").params
    assert " ".join(f"{item.name}={item.default}" for item in found) == expected


def test_a_parameter_that_is_declared_twice_is_refused_over_a_base_too() -> None:
    assert 'params: "A" is declared twice' in problems("params: [A=1, A=2]", base_config="params: [B=1]")


def test_defaults_merge_and_an_empty_list_resets_what_was_inherited() -> None:
    base = "defaults: {env: [A=1], preconditions: [a], timeout_sec: 4, retry_policy: {limit: 1, interval_sec: 2}}\n"

    def step(defaults: str) -> Any:
        return load_definition(f"defaults: {defaults}\nsteps: [{{run: x, env: [C=3]}}]", base_config=base).main.steps[0]

    joined = step("{env: [B=2], preconditions: [b], retry_policy: {limit: 5}}")
    assert [entry.name for entry in joined.env] == ["A", "B", "C"]
    assert [item.condition for item in joined.preconditions] == ["a", "b"]
    assert (joined.timeout_s, joined.retry.limit, joined.retry.interval_s) == (4.0, "5", "2")
    reset = step("{env: [], preconditions: []}")
    assert ([entry.name for entry in reset.env], reset.preconditions) == (["C"], ())


def test_a_handler_of_the_document_replaces_that_of_the_base() -> None:
    found = dag("handler_on: {exit: {run: own}}", base_config="handler_on: {exit: {run: b}, failure: {run: f}}")
    assert (found.handlers["exit"].commands, found.handlers["failure"].commands) == (("own",), ("f",))


def test_a_mistake_in_the_base_configuration_is_said_to_be_there() -> None:
    assert "base.yaml:1:1" in problems("", base_config="shel: x")
