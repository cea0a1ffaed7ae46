"""`redis.<command>` against real servers: alone, in a cluster of one, behind a sentinel, over TLS."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors.redis import LOCK_PREFIX
from tests.ports import free_port
from tests.runner.executors import servers
from tests.runner.executors.test_sqlite import dag, error_of, step, stopped_at
from tests.runner.harness import Seen, run

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Redis]:
    with servers.redis() as server:
        yield server


@pytest.fixture
def key() -> str:
    return f"k{next(_numbers)}"


async def commands(base: Path, server: servers.Redis, *entries: tuple[str, dict[str, Any]]) -> Seen:
    """Run commands one after the other, at `server` unless they say where; the last step is `q`."""
    here = {"url": f"unix://{server.socket}", "password": server.password}
    names = [*(f"s{n}" for n in range(len(entries) - 1)), "q"]
    steps = []
    for name, (kind, inputs) in zip(names, entries, strict=True):
        is_elsewhere = inputs.keys() & {"url", "host", "mode"}
        steps.append(step(name, f"redis.{kind}", **inputs, **({} if is_elsewhere else here)))
    return await run(dag(*steps), base)


@pytest.mark.parametrize(
    ("before", "command", "expected"),
    [
        ([], ("ping", {}), "PONG"),
        ([], ("set", {"key": "K", "value": "v", "ttl": "1h"}), "OK"),
        ([("set", {"key": "K", "value": "v"})], ("get", {"key": "K"}), "v"),
        ([("set", {"key": "K", "value": {"a": [1]}})], ("get", {"key": "K"}), '{"a":[1]}'),
        ([("set", {"key": "K", "value": "old"})], ("set", {"key": "K", "value": "new", "nx": True}), None),
        ([("set", {"key": "K", "value": 1, "ttl": 90})], ("ttl", {"key": "K"}), 90),
        ([("set", {"key": "K", "value": 1}), ("expire", {"key": "K", "ttl": "2m"})], ("ttl", {"key": "K"}), 120),
        ([], ("get", {"key": "K"}), None),
        ([("set", {"key": "K", "value": 4})], ("incr", {"key": "K"}), 5),
        ([("set", {"key": "K", "value": 4})], ("incrby", {"key": "K", "amount": 6}), 10),
        ([("set", {"key": "K", "value": 4})], ("decr", {"key": "K"}), 3),
        ([("set", {"key": "K", "value": 4})], ("exists", {"key": "K"}), 1),
        ([("set", {"key": "K", "value": 4})], ("del", {"keys": ["K", "K2"]}), 1),
        ([("mset", {"values": {"K": "a", "K2": "b"}})], ("mget", {"keys": ["K", "K2", "K3"]}), ["a", "b", None]),
        ([("hset", {"key": "K", "field": "f", "value": 1})], ("hget", {"key": "K", "field": "f"}), "1"),
        ([("hset", {"key": "K", "fields": {"f": 1, "g": "x"}})], ("hgetall", {"key": "K"}), {"f": "1", "g": "x"}),
        ([("hset", {"key": "K", "fields": {"f": 1, "g": 2}})], ("hdel", {"key": "K", "fields": ["f", "g"]}), 2),
        ([("rpush", {"key": "K", "values": ["a", "b"]})], ("lrange", {"key": "K", "start": 0, "stop": -1}), ["a", "b"]),
        ([("lpush", {"key": "K", "value": "a"})], ("lpop", {"key": "K"}), "a"),
        ([("sadd", {"key": "K", "members": ["a"]})], ("smembers", {"key": "K"}), ["a"]),
        ([("sadd", {"key": "K", "value": "a"})], ("sismember", {"key": "K", "member": "a"}), 1),
        (
            [("zadd", {"key": "K", "score": 1.5, "member": "a"}), ("zadd", {"key": "K", "values": {"b": 2}})],
            ("zrange", {"key": "K", "start": 0, "stop": -1, "with_scores": True}),
            [{"member": "a", "score": 1.5}, {"member": "b", "score": 2}],
        ),
        (
            [("zadd", {"key": "K", "members": [{"score": 1, "member": "a"}, {"score": 5, "value": "b"}]})],
            ("zrangebyscore", {"key": "K", "min": 2, "max": "+inf"}),
            ["b"],
        ),
        ([("set", {"key": "K", "value": 1})], ("keys", {"pattern": "K"}), ["K"]),
        ([], ("command", {"command": "ECHO 'two words'"}), "two words"),
        ([], ("command", {"command": "set", "key": "K", "value": "x; FLUSHALL"}), "OK"),
        ([], ("object_help", {}), list),
        (
            [],
            ("pipeline", {"pipeline": [{"command": "set", "key": "K", "value": 1}, {"command": "incr", "key": "K"}]}),
            ["OK", 2],
        ),
        ([], ("pipeline", {"multi": True, "pipeline": ["SET K 1", {"command": "hgetall", "key": "K2"}]}), ["OK", {}]),
        (
            [],
            ("eval", {"script": "return {KEYS[1], ARGV[1]}", "script_keys": ["K"], "script_args": [7]}),
            ["K", "7"],
        ),
    ],
)
async def test_a_command_takes_its_arguments_from_with_and_prints_its_reply(
    tmp_path: Path,
    server: servers.Redis,
    key: str,
    before: list[tuple[str, dict[str, Any]]],
    command: tuple[str, dict[str, Any]],
    expected: Any,
) -> None:
    entries = json.loads(json.dumps([*before, command]).replace('"K', f'"{key}').replace("SET K", f"SET {key}"))
    seen = await commands(tmp_path, server, *(tuple(entry) for entry in entries))
    assert seen.status is RunStatus.SUCCEEDED, error_of(seen)
    reply = json.loads(seen.out("q"))
    if expected is list:
        assert isinstance(reply, list)
    else:
        assert reply == json.loads(json.dumps(expected).replace('"K', f'"{key}'))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, '["a",null,"b,c"]\n'),
        ({"output_format": "jsonl"}, '"a"\nnull\n"b,c"\n'),
        ({"output_format": "raw"}, "a\n\nb,c\n"),
        ({"output_format": "raw", "null_value": "-"}, "a\n-\nb,c\n"),
        ({"output_format": "csv", "null_value": "-"}, 'a\n-\n"b,c"\n'),
    ],
)
async def test_a_reply_is_printed_in_each_format(
    tmp_path: Path, server: servers.Redis, key: str, options: dict[str, Any], expected: str
) -> None:
    put = ("mset", {"values": {f"{key}a": "a", f"{key}c": "b,c"}})
    seen = await commands(tmp_path, server, put, ("mget", {"keys": [f"{key}a", f"{key}b", f"{key}c"], **options}))
    assert seen.out("q") == expected


async def test_bytes_are_printed_raw_as_they_are(tmp_path: Path, server: servers.Redis, key: str) -> None:
    script = {"script": "redis.call('set', KEYS[1], '\\255\\0') return 1", "script_keys": [key]}
    seen = await commands(tmp_path, server, ("eval", script), ("get", {"key": key, "output_format": "raw"}))
    assert seen.logs["q.stdout.log"] == b"\xff\0\n"


async def test_the_script_may_be_a_file(tmp_path: Path, server: servers.Redis) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/x.lua").write_text("return 'from a file'")
    seen = await commands(tmp_path, server, ("script", {"script_file": "x.lua"}))
    assert seen.out("q") == '"from a file"\n'


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("get", {}), "needs key"),
        (("set", {"key": "x"}), "needs value"),
        (("del", {}), "needs key"),
        (("nonsense", {}), "unknown command"),
        (("pipeline", {"pipeline": []}), "1 to"),
        (("command", {"command": "SET 'a"}), "quotation mark"),
        (("get", {"key": "x", "db": 16}), "db"),
        (("get", {"key": "x", "mode": "swarm"}), "mode"),
        (("echo", {"message": "12345678", "max_result_size": 5}), "max_result_size"),
        (("ping", {"url": "http://x:secret-in-url@h/"}), "no address of a Redis server"),
        (("ping", {"mode": "cluster"}), "cluster_addrs"),
    ],
)
async def test_what_cannot_be_done_fails_the_step(
    tmp_path: Path, server: servers.Redis, command: tuple[str, dict[str, Any]], why: str
) -> None:
    seen = await commands(tmp_path, server, command)
    assert seen.status is RunStatus.FAILED
    assert why in error_of(seen)
    assert "secret-in-url" not in error_of(seen)


async def test_the_root_has_the_defaults_and_its_password_goes_to_no_other_server(
    tmp_path: Path, server: servers.Redis
) -> None:
    root = {"host": "127.0.0.1", "port": server.port, "password": "${PW}", "null_value": "-"}
    env = {"PW": server.password}
    get = step("q", "redis.get", key="nothing", output_format="raw")
    seen = await run(dag(get, redis=root, env=env), tmp_path / "1")
    assert seen.out("q") == "-\n"
    other = step("q", "redis.ping", host="localhost", port=server.port)
    seen = await run(dag(other, redis=root, env=env), tmp_path / "2")
    assert "Authentication required" in error_of(seen)


async def test_a_wrong_password_is_an_error_that_does_not_repeat_it(tmp_path: Path, server: servers.Redis) -> None:
    seen = await commands(tmp_path, server, ("ping", {"url": f"redis://:wrong-pw@127.0.0.1:{server.port}/0"}))
    assert seen.status is RunStatus.FAILED
    assert "wrong-pw" not in error_of(seen)


async def test_a_server_that_is_not_there_fails_the_step(tmp_path: Path, server: servers.Redis) -> None:
    seen = await commands(tmp_path, server, ("ping", {"host": "127.0.0.1", "port": free_port(), "max_retries": 1}))
    assert seen.status is RunStatus.FAILED


async def test_a_command_that_waits_ends_with_its_timeout(tmp_path: Path, server: servers.Redis) -> None:
    seen = await commands(tmp_path, server, ("command", {"command": "BLPOP nowhere 0", "timeout": "200ms"}))
    assert "longer than 0.2s" in error_of(seen)


async def test_a_command_that_waits_ends_when_the_run_is_stopped(tmp_path: Path, server: servers.Redis) -> None:
    waits = step(
        "q", "redis.command", command="BLPOP nowhere 0", url=f"unix://{server.socket}", password=server.password
    )
    seen = await stopped_at(dag(waits), tmp_path)
    assert seen.nodes()["q"] == "aborted"


async def test_a_lock_is_held_and_given_back(tmp_path: Path, server: servers.Redis, key: str) -> None:
    held = ("set", {"key": LOCK_PREFIX + key, "value": "somebody else"})
    asks = ("ping", {"lock": key, "lock_retry": 1, "lock_wait": 1})
    seen = await commands(tmp_path / "1", server, held, asks)
    assert "held by somebody else" in error_of(seen)
    seen = await commands(tmp_path / "2", server, ("get", {"key": LOCK_PREFIX + key}))
    assert seen.out("q") == '"somebody else"\n'
    inside = ("exists", {"key": f"{LOCK_PREFIX}{key}b", "lock": f"{key}b"})
    seen = await commands(tmp_path / "3", server, inside, inside)
    assert seen.out("q") == "1\n"
    seen = await commands(tmp_path / "4", server, ("exists", {"key": f"{LOCK_PREFIX}{key}b"}))
    assert seen.out("q") == "0\n"


async def test_a_lock_is_given_back_when_the_command_takes_too_long(
    tmp_path: Path, server: servers.Redis, key: str
) -> None:
    slow = ("command", {"command": "BLPOP nowhere 0", "timeout": 0.2, "lock": key})
    await commands(tmp_path / "1", server, slow)
    seen = await commands(tmp_path / "2", server, ("exists", {"key": LOCK_PREFIX + key}))
    assert seen.out("q") == "0\n"


async def test_a_cluster_answers(tmp_path: Path, key: str) -> None:
    with servers.redis("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        alone = {"host": "127.0.0.1", "port": server.port, "password": server.password}
        together = {"mode": "cluster", "cluster_addrs": [f"127.0.0.1:{server.port}"], "password": server.password}
        own = ("command", {**alone, "command": "CLUSTER ADDSLOTSRANGE 0 16383"})
        ready = ("command", {**alone, "command": "CLUSTER INFO", "output_format": "raw"})
        async for _ in _until_ok(tmp_path, server, own, ready):
            pass
        put, get = ("set", {**together, "key": key, "value": "v"}), ("get", {**together, "key": key})
        seen = await commands(tmp_path / "c", server, put, get)
        assert seen.out("q") == '"v"\n', error_of(seen)


async def _until_ok(base: Path, server: servers.Redis, first: Any, ask: Any) -> Any:
    """Ask until the cluster has noticed that it is whole."""
    seen = await commands(base / "0", server, first, ask)
    for number in itertools.count(1):
        if "cluster_state:ok" in seen.out("q"):
            return
        seen = await commands(base / str(number), server, ask)
        yield number


async def test_a_sentinel_names_the_server(tmp_path: Path, server: servers.Redis) -> None:
    watched = ["--sentinel", "monitor", "main", "127.0.0.1", str(server.port), "1"]
    auth = ["--sentinel", "auth-pass", "main", server.password]
    with servers.redis(*watched, *auth, sentinel=True) as sentinel:
        address = {"sentinel_addrs": [f"127.0.0.1:{sentinel.port}"], "sentinel_master": "main"}
        seen = await commands(
            tmp_path, server, ("ping", {"mode": "sentinel", **address, "password": server.password, "timeout": 10})
        )
    assert seen.out("q") == '"PONG"\n', error_of(seen)


async def test_tls_is_verified_unless_told_otherwise(tmp_path: Path) -> None:
    authority = trustme.CA()
    (tmp_path / "work").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "work/ca.pem"))
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")]
    with servers.redis(*files, "--tls-auth-clients", "no", tls=True) as server:
        where = {"host": "127.0.0.1", "port": server.port, "password": server.password, "max_retries": 0}
        url = f"redis://:{server.password}@127.0.0.1:{server.port}"
        for inputs, expected in (
            ({**where, "tls": True, "tls_ca": "ca.pem"}, RunStatus.SUCCEEDED),
            ({"url": url, "tls": True, "tls_ca": "ca.pem"}, RunStatus.SUCCEEDED),
            ({**where, "tls": True}, RunStatus.FAILED),
            ({**where, "tls": True, "tls_skip_verify": True}, RunStatus.SUCCEEDED),
        ):
            seen = await commands(tmp_path, server, ("ping", inputs))
            assert seen.status is expected, (inputs, error_of(seen))
            for log in (tmp_path / "logs").iterdir():
                log.unlink()
