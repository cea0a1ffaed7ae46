"""Which value wins, what is refused, and what steps get to see."""

from __future__ import annotations

import argparse
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.config import values
from secure_dagu.config.home import find_home
from secure_dagu.config.load import Loaded, host_environment, load
from secure_dagu.config.reference import configuration_page
from secure_dagu.config.settings import all_settings
from secure_dagu.config.values import Address, shown
from secure_dagu.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def loaded(home: Path, file: str = "", env: dict[str, str] | None = None, **flags: str) -> Loaded:
    """Load with a file, variables, and flags given by key with `__` for the dot."""
    if file:
        (home / "config.yaml").write_text(file)
    args = argparse.Namespace(dagu_home=str(home), **{key.replace("__", "."): value for key, value in flags.items()})
    return load(args, {"HOME": str(home)} | (env or {}))


def refusal(home: Path, file: str = "", env: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as refused:
        loaded(home, file, env, **flags)
    return f"{refused.value.what} {refused.value.why} {refused.value.fix}"


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = "coordinator:\n  host: 10.0.0.1\n  port: 1001\n  health_port: 1002\nworker:\n  id: from-file\n"
    env = {"DAGU_COORDINATOR_HOST": "10.0.0.2", "DAGU_COORDINATOR_PORT": "2001"}
    done = loaded(tmp_path, file, env, coordinator__host="10.0.0.3")
    assert (done.settings.coordinator.host, done.sources["coordinator.host"]) == ("10.0.0.3", "flag --coordinator.host")
    assert done.settings.coordinator.port == 2001
    assert done.sources["coordinator.port"] == "variable DAGU_COORDINATOR_PORT"
    assert done.settings.coordinator.health_port == 1002
    assert done.sources["coordinator.health_port"] == f"{tmp_path}/config.yaml:4"
    assert (done.settings.worker.health_port, done.sources["worker.health_port"]) == (8092, "default")


def test_a_variable_set_to_nothing_is_not_set(tmp_path: Path) -> None:
    done = loaded(tmp_path, "coordinator: {port: 1001}", {"DAGU_COORDINATOR_PORT": "", "DEBUG": ""})
    assert done.settings.coordinator.port == 1001
    assert not done.settings.core.debug


def test_plain_debug_turns_debugging_on_whatever_it_holds(tmp_path: Path) -> None:
    assert loaded(tmp_path, env={"DEBUG": "*"}).settings.core.debug
    assert not loaded(tmp_path, env={"DEBUG": "*", "DAGU_DEBUG": "false"}).settings.core.debug


def test_without_anything_the_host_decides(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    assert settings.coordinator.advertise == (socket.gethostname(),)
    assert settings.coordinator.id == f"{socket.gethostname()}@50055"
    assert settings.worker.id == f"{socket.gethostname()}@{os.getpid()}"
    assert settings.client.coordinators == (Address("localhost", 50055),)
    assert settings.paths.artifact_dir == tmp_path / "data" / "artifacts"
    assert not settings.peer.insecure


@pytest.mark.parametrize(
    ("flags", "dialled"),
    [
        ({"worker__coordinators": "a:1,[2001:db8::7]:2"}, "a:1,[2001:db8::7]:2"),
        ({"coordinator__advertise": "ci.example.com,10.0.0.1", "coordinator__port": "7"}, "ci.example.com:7"),
        ({"coordinator__host": "10.0.0.5"}, "10.0.0.5:50055"),
        ({"coordinator__host": "0.0.0.0"}, "localhost:50055"),
        ({"client__coordinators": "b:3", "worker__coordinators": "a:1"}, "b:3"),
    ],
)
def test_operator_commands_dial_what_is_nearest(tmp_path: Path, flags: dict[str, str], dialled: str) -> None:
    assert values.shown(loaded(tmp_path, "", None, **flags).settings.client.coordinators) == dialled


def test_labels_keep_their_case_and_take_any_scalar(tmp_path: Path) -> None:
    file = "worker:\n  labels:\n    GPU: A100\n    n: 1\n    ok: true\n    v: 1.10\n"
    assert loaded(tmp_path, file).settings.worker.labels == {"GPU": "A100", "n": "1", "ok": "true", "v": "1.10"}


def test_labels_of_a_flag_replace_those_of_the_file(tmp_path: Path) -> None:
    done = loaded(tmp_path, "worker: {labels: {a: b, c: d}}", worker__labels="e=f=g, h = i")
    assert done.settings.worker.labels == {"e": "f=g", "h": "i"}


def test_keys_are_found_in_any_case_but_camel_case_is_refused_with_the_new_name(tmp_path: Path) -> None:
    assert loaded(tmp_path, "COORDINATOR: {Port: 7}").settings.coordinator.port == 7
    said = refusal(tmp_path, "peer:\n  clientCaFile: x\ndefaultShell: sh\n")
    assert "legacy camelCase keys migrate to snake_case: peer.clientCaFile -> peer.client_ca_file" in said
    assert "defaultShell -> default_shell" in said


def test_unknown_keys_are_all_named_with_line_and_nearest_key(tmp_path: Path) -> None:
    said = refusal(tmp_path, "worker:\n  lables: {a: b}\ncordinator:\n  port: 1\nxyzzy: 1\n")
    assert "line 2: unknown key worker.lables (did you mean worker.labels?)" in said
    assert "cordinator" in said
    assert "line 5: unknown key xyzzy" in said


def test_known_dagu_keys_are_accepted_with_a_warning_that_names_them(tmp_path: Path) -> None:
    file = (
        "auth: {oidc: {issuer: x}}\ncache: low\npaths: {tools_dir: /q}\nterminal: {maxSessions: x}\nworker: {id: w}\n"
    )
    done = loaded(tmp_path, file)
    (warning,) = done.warnings
    assert warning.startswith(
        f"{tmp_path}/config.yaml: known to Dagu and not used by this version: auth.oidc (line 1), "
    )
    assert all(f" {key} (line " in warning for key in ("cache", "paths.tools_dir", "terminal"))


def test_known_dagu_variables_are_accepted_with_a_warning_that_names_them(tmp_path: Path) -> None:
    env = {"DAGU_AUTH_OIDC_ISSUER": "x", "DAGU_TOOLS_DIR": "y", "DAGU_GITSYNC_TOKEN": "z", "DAGU_EXECUTABLE": "dagu"}
    (warning,) = loaded(tmp_path, env=env).warnings
    assert warning.endswith("this version: DAGU_AUTH_OIDC_ISSUER, DAGU_GITSYNC_TOKEN, DAGU_TOOLS_DIR")


def test_old_names_are_taken_for_the_new_ones_and_win(tmp_path: Path) -> None:
    file = (
        "dags: /d\nlog_dir: /l\npermission_write_dags: false\npaths: {log_dir: /other}\npermissions: {run_dags: true}\n"
    )
    done = loaded(tmp_path, file)
    assert (done.settings.paths.dags_dir, done.settings.paths.log_dir) == (Path("/d"), Path("/l"))
    assert not done.settings.permissions.write_dags
    assert done.sources["paths.log_dir"].endswith(":2")
    assert [warning.rpartition(": ")[2] for warning in done.warnings] == [
        "dags is the old name of paths.dags_dir",
        "log_dir is the old name of paths.log_dir",
        "permission_write_dags is the old name of permissions.write_dags",
    ]
    assert loaded(tmp_path, env={"DAGU_API_BASE_URL": "/api/v9"}).settings.core.api_base_path == "/api/v9"


def test_folders_of_logs_follow_the_one_above_them(tmp_path: Path) -> None:
    paths = loaded(tmp_path, "paths: {log_dir: /l}").settings.paths
    assert (paths.admin_logs_dir, paths.event_store_dir) == (Path("/l/admin"), Path("/l/admin/events"))
    env = {"DAGU_ADMIN_LOG_DIR": "/a"}
    assert loaded(tmp_path, env=env).settings.paths.event_store_dir == Path("/a/events")


def test_keys_may_be_nested_deeper(tmp_path: Path) -> None:
    done = loaded(tmp_path, "auth:\n  builtin:\n    token: {ttl: 2h}\n    initial_admin: {username: ada}\n")
    assert done.settings.auth.token_ttl == timedelta(hours=2)
    assert done.settings.auth.initial_admin_username == "ada"
    assert done.sources["auth.builtin.token.ttl"].endswith(":3")


def test_a_secret_may_be_in_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("tell-nobody\n")
    done = loaded(tmp_path, env={"DAGU_AUTH_TOKEN_SECRET_FILE": str(tmp_path / "secret")})
    secret = done.settings.auth.token_secret
    assert secret is not None
    assert secret.reveal() == "tell-nobody"
    assert "tell-nobody" not in f"{done.settings!r} {done.settings} {shown(secret)}"


def test_named_queues_are_read_and_checked(tmp_path: Path) -> None:
    done = loaded(tmp_path, "queues: {config: [{name: a, max_concurrency: 3}, {name: b, max_active_runs: 2}]}\n")
    assert [(queue.name, queue.max_concurrency) for queue in done.settings.queues.config] == [("a", 3), ("b", 2)]
    with pytest.raises(ConfigError, match="max_concurency"):
        loaded(tmp_path, "queues: {config: [{name: a, max_concurency: 3}]}\n")


def test_a_misspelt_variable_is_warned_about(tmp_path: Path) -> None:
    done = loaded(tmp_path, env={"DAGU_WORKER_CORDINATORS": "a:1", "DAGU_HOST": "x", "DAGU_SOMETHING_ELSE": "y"})
    assert done.warnings == (
        "the variable DAGU_WORKER_CORDINATORS means nothing here (did you mean DAGU_WORKER_COORDINATORS?)",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coordinator.port", "70000"),
        ("coordinator.port", "-1"),
        ("coordinator.port", "5e4"),
        ("coordinator.host", "a:1"),
        ("coordinator.advertise", "https://x"),
        ("coordinator.task_wait", "5"),
        ("coordinator.task_wait", "1d"),
        ("coordinator.task_wait", "-5s"),
        ("auth.builtin.token.ttl", "0"),
        ("auth.builtin.token.ttl", "8761h"),
        ("sse.heartbeat_interval", "0s"),
        ("worker.max_active_runs", "0"),
        ("worker.labels", "novalue"),
        ("worker.labels", "=v"),
        ("worker.coordinators", "nohost"),
        ("worker.coordinators", "a:0"),
        ("worker.coordinators", "2001:db8::7:50055"),
        ("peer.insecure", "yes"),
        ("peer.min_tls_version", "1.1"),
        ("log_format", "xml"),
        ("default_execution_mode", "cloud"),
        ("tz", "Mars/Olympus"),
        ("worker.id", "a\nb"),
        ("ui.max_dashboard_page_limit", "0"),
        ("ui.max_dashboard_page_limit", "1001"),
        ("ui.log_encoding_charset", "klingon"),
        ("ui.log_encoding_charset", "utf-16"),
        ("ui.log_encoding_charset", "utf-7"),
        ("ui.log_encoding_charset", "hex"),
        ("ui.log_encoding_charset", "unicode_escape"),
        ("ui.log_encoding_charset", "cp037"),
    ],
)
def test_an_invalid_value_is_fatal_and_told_with_key_and_source(tmp_path: Path, key: str, value: str) -> None:
    variable = all_settings()[key].env[0]
    said = refusal(tmp_path, env={variable: value})
    assert key in said
    assert f"variable {variable}" in said


@pytest.mark.parametrize(
    ("environ", "charset"),
    [
        ({}, "utf-8"),
        ({"LANG": "C"}, "utf-8"),
        ({"LANG": "de_DE.ISO-8859-15@euro"}, "iso-8859-15"),
        ({"LANG": "ja_JP.eucJP"}, "eucjp"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "pl_PL.ISO-8859-2"}, "iso-8859-2"),
        ({"LANG": "xx_XX.klingon"}, "utf-8"),
        ({"LANG": "de_DE.ISO-8859-1", "DAGU_UI_LOG_ENCODING_CHARSET": "Windows-1252"}, "windows-1252"),
    ],
)
def test_logs_are_read_in_the_encoding_of_the_locale_unless_another_is_said(
    tmp_path: Path, environ: dict[str, str], charset: str
) -> None:
    assert loaded(tmp_path, env=environ).settings.ui.log_encoding_charset == charset


def test_what_a_key_takes_is_told_in_the_words_of_dagu(tmp_path: Path) -> None:
    said = refusal(tmp_path, "default_execution_mode: x\n")
    assert 'invalid default_execution_mode: "x" (must be one of: local, distributed)' in said


def test_all_invalid_values_are_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "worker: {max_active_runs: 0}", {"DAGU_PEER_INSECURE": "yes"}, coordinator__port="x")
    assert all(key in said for key in ("worker.max_active_runs", "peer.insecure", "coordinator.port"))


@pytest.mark.parametrize(
    "file",
    [
        "a: [",
        "- a list",
        "worker: text",
        "worker: {id: a, id: b}",
        "worker: {labels: {a: b, a: c}}",
        "? [1, 2]\n: x",
        "worker: {labels: " + "[" * 30 + "]" * 30 + "}",
        "[" * 1500,
        "x: &a [1,1,1,1,1,1,1,1,1,1]\ny: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nz: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "w: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nv: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "worker: {id: !!python/object:os.system x}",
        "#" * (1 << 20) + "#",
    ],
)
def test_a_file_that_is_no_plain_map_of_values_is_refused(tmp_path: Path, file: str) -> None:
    if "python/object" in file:
        assert loaded(tmp_path, file).settings.worker.id == "x"  # a tag is only a word: nothing is constructed
    else:
        assert "config.yaml" in refusal(tmp_path, file)


def test_a_missing_file_is_fatal_only_when_it_was_asked_for(tmp_path: Path) -> None:
    assert loaded(tmp_path).config_file is None
    args = argparse.Namespace(dagu_home=str(tmp_path), config=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"failed to read config: open .*/none\.yaml: no such file or directory"):
        load(args, {"HOME": "/"})


def test_empty_values_in_the_file_are_not_set(tmp_path: Path) -> None:
    file = "worker:\n  id:\ncoordinator:\npeer: ~\ntls: {cert_file: ''}\npaths: {data_dir: \"\"}\nport: ''\n"
    done = loaded(tmp_path, file)
    assert {done.sources[key] for key in ("worker.id", "tls.cert_file", "paths.data_dir", "port")} == {"default"}
    assert done.settings.tls.cert_file is None
    assert done.settings.paths.data_dir == tmp_path / "data"
    assert loaded(tmp_path, "# nothing\n").config_file is not None


def test_paths_are_expanded_and_made_absolute(tmp_path: Path) -> None:
    file = "paths:\n  data_dir: ~/d\n  log_dir: ${LOGS}/x\npeer: {cert_file: ~/c.crt}\n"
    settings = loaded(tmp_path, file, {"LOGS": "/var/log"}).settings
    assert settings.paths.data_dir == tmp_path / "d"
    assert settings.paths.artifact_dir == tmp_path / "d" / "artifacts"
    assert settings.paths.log_dir == Path("/var/log/x")
    assert settings.peer.cert_file == tmp_path / "c.crt"
    assert "${NOPE} is not set" in refusal(tmp_path, "paths: {log_dir: '${NOPE}/x'}")
    file = "paths: {data_dir: rel}"
    assert loaded(tmp_path, file).settings.paths.data_dir == Path.cwd() / "rel"


def test_signs_of_life_come_before_silence_means_something(tmp_path: Path) -> None:
    said = refusal(tmp_path, "proc: {heartbeat_interval: 90s}")
    assert "proc.stale_threshold" in said
    done = loaded(tmp_path, "proc: {heartbeat_interval: 1m, stale_threshold: 5m, heartbeat_sync_interval: 10s}")
    assert (done.settings.proc.heartbeat_interval, done.settings.proc.stale_threshold) == (
        timedelta(minutes=1), timedelta(minutes=5),
    )  # fmt: skip
    [warning] = done.warnings
    assert "proc.heartbeat_sync_interval" in warning


def test_health_and_rpc_cannot_share_a_port(tmp_path: Path) -> None:
    assert "health_port" in refusal(tmp_path, coordinator__port="8091")


def test_the_home_is_found_in_the_documented_order(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "DAGU_HOME": "/b", "XDG_DATA_HOME": "/share", "XDG_CONFIG_HOME": "/not-consulted"}
    assert find_home("a", env, cwd=Path("/w")).config_dir == Path("/w/a")
    assert find_home(None, env, cwd=Path("/w")).data_dir == Path("/b/data")
    del env["DAGU_HOME"]
    xdg = find_home(None, env, cwd=Path("/w"))
    assert (xdg.config_dir, xdg.log_dir) == (tmp_path / ".config/dagu", Path("/share/dagu/logs"))
    (tmp_path / ".dagu").mkdir()
    assert find_home(None, env, cwd=Path("/w")).pki_dir == tmp_path / ".dagu/pki"


def test_steps_see_an_allow_list_and_never_a_configuration_variable(tmp_path: Path) -> None:
    env = {
        "PATH": "/bin",
        "LC_TIME": "C",
        "KUBERNETES_PORT": "1",
        "DAG_OF_THE_HOST": "1",
        "DAGU_HOME": "/h",
        "DAGU_CONTAINER_RUNTIME": "podman",
        "AWS_SECRET": "canary",
        "CI_JOB": "7",
        "ONE": "1",
        "DAGU_AUTH_TOKEN_SECRET": "canary",
        "DAGU_PEER_KEY_FILE": "canary",
        "_DAGU_INTERNAL_X": "canary",
        "DAGU_ENV_PASSTHROUGH": "ONE,DAGU_AUTH_TOKEN_SECRET",
        "DAGU_ENV_PASSTHROUGH_PREFIXES": "CI_,DAGU_,_DAGU",
        "DAGU_TZ": "Europe/Berlin",
        "DAGU_DEFAULT_SHELL": "/bin/dash",
    }
    assert host_environment(loaded(tmp_path, env=env), env) == {
        "PATH": "/bin",
        "LC_TIME": "C",
        "KUBERNETES_PORT": "1",
        "DAG_OF_THE_HOST": "1",
        "DAGU_HOME": str(tmp_path),
        "DAGU_CONTAINER_RUNTIME": "podman",
        "CI_JOB": "7",
        "ONE": "1",
        "TZ": "Europe/Berlin",
        "SHELL": "/bin/dash",
    }


@given(st.integers(0, 10**9))
def test_every_duration_is_read_back_as_it_is_shown(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert values.duration(values.shown(span)) == span


@pytest.mark.parametrize(("text", "seconds"), [("1h30m", 5400), ("500ms", 0.5), ("1.5s", 1.5), ("0", 0), ("2m3s", 123)])
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert values.duration(text) == timedelta(seconds=seconds)


@given(st.recursive(st.text(max_size=20), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_no_parser_fails_with_anything_but_a_value_error(raw: Any) -> None:
    parsers = (
        values.boolean,
        values.duration,
        values.texts,
        values.labels,
        values.hosts,
        values.addresses,
        values.text,
    )
    for parse in parsers:
        try:
            parse(raw)
        except ValueError:
            continue


def test_every_setting_has_a_variable_of_its_own_and_dagus_irregular_names_are_kept() -> None:
    declared = all_settings()
    names = [name for item in declared.values() for name in item.env]
    assert len(names) == len(set(names))
    irregular = {"metrics": "DAGU_SERVER_METRICS", "paths.data_dir": "DAGU_DATA_DIR", "paths.log_dir": "DAGU_LOG_DIR"}
    assert all(declared[key].env[0] == name for key, name in irregular.items())
    shorts = {item.flag: item.short for item in declared.values() if item.short}
    assert shorts == {
        "--host": "-s",
        "--port": "-p",
        "--dags": "-d",
        "--tunnel": "-t",
        "--coordinator.host": "-H",
        "--coordinator.port": "-P",
        "--coordinator.advertise": "-A",
        "--worker.id": "-w",
        "--worker.max-active-runs": "-m",
        "--worker.labels": "-l",
    }


def test_the_reference_page_is_what_the_declarations_say() -> None:
    """If this fails: `secure-dagu config docs > docs/reference/configuration.md`."""
    assert (ROOT / "docs/reference/configuration.md").read_text() == configuration_page()
