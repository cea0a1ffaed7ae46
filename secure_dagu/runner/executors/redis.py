"""`redis.<command>`: one command, a pipeline or a script (workflow language, section 4.6).

A command's arguments are keys of `with`; `ARGUMENTS` says in which order each command wants them.
"""

from __future__ import annotations

import asyncio
import csv
import io
import secrets
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from secure_dagu.dag import formats
from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded, Unavailable
from secure_dagu.run.machine import Result
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below, read_bounded

TIMEOUT_S = 30.0
MAX_RESULT = 10 * 2**20
MAX_SCRIPT = 2**20
MAX_COMMANDS = 10_000
LOCK_PREFIX = "dagu:lock:"
RELEASE_S = 2.0
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_CONNECTION = frozenset(
    "url host port username password db tls tls_cert tls_key tls_ca tls_skip_verify mode sentinel_master "  # noqa: SIM905
    "sentinel_addrs cluster_addrs max_retries".split()
)

ARGUMENTS: Mapping[str, str] = {
    **dict.fromkeys(
        "get getdel strlen type incr decr ttl pttl persist hgetall hkeys hvals hlen llen scard smembers zcard dump "  # noqa: SIM905
        "expiretime".split(),
        "key",
    ),
    **dict.fromkeys("del exists unlink touch mget sinter sunion sdiff pfcount watch".split(), "keys+"),  # noqa: SIM905
    **dict.fromkeys("lpush rpush lpushx rpushx pfadd".split(), "key values+"),  # noqa: SIM905
    **dict.fromkeys(("sadd", "srem", "zrem"), "key members+"),
    **dict.fromkeys(("lpop", "rpop", "spop", "srandmember"), "key count?"),
    **dict.fromkeys(("lrange", "ltrim"), "key start stop"),
    **dict.fromkeys(("zrange", "zrevrange"), "key start stop with_scores"),
    **dict.fromkeys(("zrangebyscore", "zrevrangebyscore"), "key min max with_scores limit"),
    **dict.fromkeys(("zscore", "zrank", "zrevrank", "sismember"), "key member"),
    **dict.fromkeys(("incrby", "decrby", "incrbyfloat"), "key amount"),
    **dict.fromkeys(("append", "getset", "setnx"), "key value"),
    **dict.fromkeys(("rename", "renamenx", "rpoplpush"), "key destination"),
    **dict.fromkeys(("hget", "hexists", "hstrlen"), "key field"),
    **dict.fromkeys(("hdel", "hmget"), "key fields+"),
    **dict.fromkeys(("hscan", "sscan", "zscan"), "key cursor match count"),
    **dict.fromkeys(("mset", "msetnx"), "pairs"),
    **dict.fromkeys(("expireat", "pexpireat"), "key timestamp"),
    **dict.fromkeys(("ping", "echo"), "message?"),
    "set": "key value ttl-words nx xx",
    "setex": "key ttl value",
    "expire": "key ttl",
    "pexpire": "key ttl-ms",
    "hset": "key pairs",
    "hmset": "key pairs",
    "hsetnx": "key field value",
    "hincrby": "key field amount",
    "hincrbyfloat": "key field amount",
    "lindex": "key index",
    "lset": "key index value",
    "lrem": "key count value",
    "linsert": "key position pivot value",
    "smove": "key destination member",
    "zadd": "key nx xx scored",
    "zincrby": "key amount member",
    "zcount": "key min max",
    "getrange": "key start end",
    "setrange": "key offset value",
    "getbit": "key offset",
    "setbit": "key offset value",
    "publish": "channel message",
    "keys": "pattern",
    "scan": "cursor match count",
}
"""Redis command → its arguments, each a key of `with` or a group of keys (`_argument`). `?` may be missing; `+` is one
or more. A command that is not here takes what is given of `_OTHERWISE`, in that order."""
_OTHERWISE = ("key", "keys", "field", "fields", "member", "members", "score", "value", "values")
_ALSO = {
    "member": "value",
    "members+": "values",
    "amount": "value",
    "pattern": "match",
    "end": "stop",
    "message": "value",
}
"""What an argument may also be called."""


async def execute(context: StepContext) -> Done:
    """Run what the step says and print the reply."""
    defaults = resolve_tree(context.dag.step_defaults.get("redis") or {}, context.scope, FieldMode.FIELD)
    given = resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD)
    if given.keys() & {"url", "host", "mode"}:  # another server: nothing of the root's is meant for it
        defaults = {key: value for key, value in defaults.items() if key not in _CONNECTION}
    options = Options({**defaults, **given})
    return await unless_stopped(context.stop, _execute(context, options))


async def _execute(context: StepContext, options: Options) -> Done:
    limit_s = options.seconds("timeout", TIMEOUT_S)
    try:
        async with asyncio.timeout(limit_s or None):
            with _reported():
                async with _client(context, options) as client, _lock(client, options):
                    reply = await _work(context, options, client)
    except TimeoutError:
        return Done(result=Result.FAILED, exit_code=1, error=f"Redis took longer than {limit_s:g}s (`timeout`)")
    data = _printed(reply, options)
    limit = options.integer("max_result_size", MAX_RESULT) or MAX_RESULT
    if len(data) > limit:
        raise LimitExceeded("the reply is too large", why=f"max_result_size is {limit} bytes")
    context.stdout(data)
    return SUCCESS


async def _work(context: StepContext, options: Options, client: Any) -> Any:
    if "pipeline" in options:
        return await _pipeline(options, client)
    if "script" in options or "script_file" in options:
        return await client.execute_command(*_script(context, options))
    name = context.step.kind.removeprefix("redis.").lower()
    words = [options.needed("command")] if name == "command" else name.split("_")
    return await _run(client, _command(words, options))


async def _run(client: Any, command: list[Any]) -> Any:
    return _shaped(command, await client.execute_command(*command))


async def _pipeline(options: Options, client: Any) -> list[Any]:
    entries = options.items("pipeline")
    if not entries or len(entries) > MAX_COMMANDS:
        raise DefinitionError("with.pipeline cannot be used", why=f"it must have 1 to {MAX_COMMANDS} commands")
    commands = []
    for number, entry in enumerate(entries):
        values = entry if isinstance(entry, Mapping) else {"command": entry}
        described = Options(values, name=f"with.pipeline[{number}]")
        commands.append(_command([described.needed("command")], described))
    async with client.pipeline(transaction=options.boolean("multi")) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        replies = await pipeline.execute()
    return [_shaped(command, reply) for command, reply in zip(commands, replies, strict=True)]


def _script(context: StepContext, options: Options) -> list[Any]:
    text = options.text("script")
    if not text:
        path = path_below(context.cwd, options.needed("script_file"))
        text = read_bounded(path, MAX_SCRIPT, what="the script file", follow=True)
    keys = options.texts("script_keys")
    return ["EVAL", text, len(keys), *keys, *options.texts("script_args")]


# ------------------------------------------------------------------------------------------------------- connections


@asynccontextmanager
async def _client(context: StepContext, options: Options) -> AsyncIterator[Any]:
    """Give a connected client.

    Only the way to the server is tried again (`max_retries`): a command that was sent may have been executed, and
    doing it twice is not ours to decide.
    """
    client = _made(context, options)
    try:
        await _reach(client, options.integer("max_retries", 3, maximum=100))
        for name in list(client.response_callbacks):
            # Replies as the server gives them; a cluster's client needs some itself.
            if not name.upper().startswith(("CLUSTER", "COMMAND")):
                del client.response_callbacks[name]
        yield client
    finally:
        await client.aclose()
        manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
        for watcher in manager.sentinels if manager else ():  # which the client forgets
            await watcher.aclose()


def _made(context: StepContext, options: Options) -> Any:
    from redis.asyncio import Redis, RedisCluster, Sentinel
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    values: dict[str, Any] = {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
    for key in ("username", "password"):
        if options.text(key):
            values[key] = options.text(key)
    url = options.text("url")
    if options.boolean("tls") or url.startswith("rediss://"):
        values |= _tls(context, options)
        url = url.replace("redis://", "rediss://", 1) if url.startswith("redis://") else url
    mode = options.choice("mode", ("standalone", "sentinel", "cluster"), "standalone")
    if mode == "cluster":
        nodes = [ClusterNode(*_address(text, 6379)) for text in options.texts("cluster_addrs")]
        if not nodes:
            raise DefinitionError("a Redis cluster needs with.cluster_addrs")
        return RedisCluster(startup_nodes=nodes, **values)
    values["db"] = options.integer("db", 0, maximum=15)
    if mode == "sentinel":
        watchers = [_address(text, 26379) for text in options.texts("sentinel_addrs")]
        if not watchers:
            raise DefinitionError("Redis behind sentinels needs with.sentinel_addrs")
        own = {key: value for key, value in values.items() if key.startswith("ssl")}
        sentinel = Sentinel(watchers, sentinel_kwargs=own, **values)  # type: ignore[no-untyped-call]  # it has no types
        return sentinel.master_for(options.needed("sentinel_master"))
    if url:
        if "db" not in options:
            del values["db"]
        try:
            return Redis.from_url(url, **{key: value for key, value in values.items() if key != "ssl"})
        except ValueError:
            # The library's text may repeat the password.
            raise DefinitionError(
                "with.url is no address of a Redis server", why="redis://, rediss:// or unix://"
            ) from None
    return Redis(host=options.text("host") or "localhost", port=options.integer("port", 6379, maximum=65535), **values)


def _tls(context: StepContext, options: Options) -> dict[str, Any]:
    files = {"tls_cert": "ssl_certfile", "tls_key": "ssl_keyfile", "tls_ca": "ssl_ca_certs"}
    values: dict[str, Any] = {"ssl": True}
    for key, name in files.items():
        if options.text(key):
            values[name] = str(path_below(context.cwd, options.text(key)))
    if options.boolean("tls_skip_verify"):
        values |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    return values


def _address(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if not colon:
        return text, port
    if not (number.isascii() and number.isdigit() and int(number) < 65536):
        raise DefinitionError(f"{text[:80]!r} is no address", why="expected host:port")
    return host.strip("[]"), int(number)


async def _reach(client: Any, retries: int) -> None:
    from redis.exceptions import ConnectionError as Unreachable
    from redis.exceptions import NoPermissionError

    for attempt in range(retries + 1):
        try:
            await client.execute_command("PING")
            return
        except NoPermissionError:  # we are there, and may do what we may
            return
        except Unreachable as error:
            if attempt == retries or "auth" in str(error).lower():
                raise
            await asyncio.sleep(min(0.1 * 2**attempt, 1.0))


@asynccontextmanager
async def _lock(client: Any, options: Options) -> AsyncIterator[None]:
    """Hold `lock` for everybody who asks this server for it; it ends by itself after `lock_timeout`."""
    name = options.text("lock")
    if not name:
        yield
        return
    key, token = LOCK_PREFIX + name, secrets.token_hex(16)
    life_ms = max(round(options.seconds("lock_timeout", 30.0) * 1000), 1)
    wait_s = options.integer("lock_wait", 100, minimum=1, maximum=3_600_000) / 1000
    for attempt in range(options.integer("lock_retry", 10, maximum=1_000_000) + 1):
        if attempt:
            await asyncio.sleep(wait_s)
        if await client.execute_command("SET", key, token, "NX", "PX", life_ms) is not None:
            break
    else:
        raise Unavailable(f"the lock {name[:80]!r} is held by somebody else", fix="raise lock_retry or lock_wait")
    try:
        yield
    finally:
        # Also after a stop, when nothing else would end this; a lock that is not given back ends by itself.
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await client.execute_command("EVAL", RELEASE, 1, key, token)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error of the library into ours."""
    library("redis", extra="redis")
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as error:
        raise DefinitionError("Redis refused", why=str(error) or type(error).__name__) from None


# ---------------------------------------------------------------------------------------------------------- commands


def _command(words: list[str], options: Options) -> list[Any]:
    """Return a command with its arguments; `words` may hold more than the name."""
    try:
        words = [word for text in words for word in shlex.split(text)]
    except ValueError:
        raise DefinitionError("the Redis command cannot be read", why="a quotation mark is not closed") from None
    if not words:
        raise DefinitionError("the Redis command is empty")
    name = words[0].lower()
    if len(words) > 1 and name in ARGUMENTS:
        return [words[0].upper(), *words[1:]]
    layout = ARGUMENTS.get(name) if len(words) == 1 else None
    arguments: list[Any] = []
    if layout is None:
        for key in _OTHERWISE:
            value = options.any(key)
            arguments += _pairs(value) if isinstance(value, Mapping) else options.texts(key)
    else:
        for part in layout.split():
            arguments += _argument(part, options)
    return [words[0].upper(), *words[1:], *arguments]


def _argument(part: str, options: Options) -> list[Any]:
    """Return the words that one part of a layout stands for."""
    match part:
        case "ttl-words":
            if "ttl" not in options:
                return []
            ttl_s = options.seconds("ttl", 0)
            return ["EX", round(ttl_s)] if ttl_s == int(ttl_s) else ["PX", round(ttl_s * 1000)]
        case "ttl":
            _needed(part, options)
            return [round(options.seconds("ttl", 0))]
        case "ttl-ms":
            _needed("ttl", options)
            return [round(options.seconds("ttl", 0) * 1000)]
        case "nx" | "xx":
            return [part.upper()] if options.boolean(part) else []
        case "with_scores":
            return ["WITHSCORES"] if options.boolean(part) else []
        case "limit":
            if "count" not in options:
                return []
            return ["LIMIT", options.integer("offset"), options.integer("count", minimum=-1)]
        case "cursor":
            return [options.text(part, "0")]
        case "match" | "count":
            return [part.upper(), options.text(part)] if part in options else []
        case "keys+" | "fields+" | "values+" | "members+":
            many = options.texts(part[:-1]) or options.texts(_ALSO.get(part, part[:-1]))
            one = options.texts(part[:-2]) or (
                [] if many else options.texts("value" if part == "members+" else part[:-2])
            )
            return _one_or_more([*one, *many], part[:-2])
        case "pairs":
            for key in ("fields", "values"):
                if isinstance(options.any(key), Mapping):
                    return _one_or_more(_pairs(options.any(key)), key)
            return [_needed("field" if "field" in options else "key", options), _needed("value", options)]
        case "scored":
            return _scored(options)
        case _ if part.endswith("?"):
            key = part[:-1]
            return options.texts(key)[:1]
        case _:
            return [_needed(part, options)]


def _needed(key: str, options: Options) -> str:
    other = _ALSO.get(key, key)
    if key not in options and other not in options:
        raise DefinitionError(f"this Redis command needs {key}")
    return formats.as_text(options.any(key if key in options else other))


def _one_or_more(words: list[str], key: str) -> list[str]:
    if not words:
        raise DefinitionError(f"this Redis command needs {key}")
    return words


def _pairs(value: Mapping[str, Any]) -> list[str]:
    return [text for key, item in value.items() for text in (str(key), formats.as_text(item))]


def _scored(options: Options) -> list[str]:
    """Return scores and members of ZADD: `score` and `member`, a map, or a list of `{score, member}`."""
    if isinstance(options.any("values"), Mapping):
        return [text for key, score in options.any("values").items() for text in (formats.as_text(score), str(key))]
    if "members" not in options:
        return [_needed("score", options), _needed("member", options)]
    words: list[str] = []
    for item in options.items("members"):
        if isinstance(item, Mapping):
            entry = Options(item, name="with.members")
            words += [entry.needed("score"), _needed("member", entry)]
        else:
            words += [_needed("score", options), formats.as_text(item)]
    return _one_or_more(words, "members")


# ----------------------------------------------------------------------------------------------------------- replies


def _shaped(command: Sequence[Any], reply: Any) -> Any:
    """Give the replies that are pairs in a row the form of what they mean."""
    name = command[0]
    if name in ("HGETALL", "CONFIG") and isinstance(reply, list) and len(reply) % 2 == 0:
        return {_text(key): value for key, value in zip(reply[::2], reply[1::2], strict=True)}
    if "WITHSCORES" in command and isinstance(reply, list):
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return [{"member": member, "score": _score(score)} for member, score in pairs]
    if name.endswith("SCAN") and isinstance(reply, list) and len(reply) == 2:
        return {"cursor": _text(reply[0]), "keys" if name == "SCAN" else "items": reply[1]}
    return reply


def _score(value: bytes) -> float | int | str:
    number = float(value)
    if number - number != 0:
        return _text(value)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Return a reply as JSON has it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Exception):
        return str(value)
    return value


def _printed(reply: Any, options: Options) -> bytes:
    """Return the reply in `output_format`."""
    form = options.choice("output_format", ("json", "jsonl", "raw", "csv"), "json")
    null = options.text("null_value")
    if form == "raw" and isinstance(reply, bytes):
        return reply + b"\n"
    value = _plain(reply)
    items = value if isinstance(value, list) else [value]
    if form == "json":
        text = formats.compact_json(value) + "\n"
    elif form == "jsonl":
        text = "".join(formats.compact_json(item) + "\n" for item in items)
    else:
        rows = (
            [list(pair) for pair in value.items()]
            if isinstance(value, Mapping)
            else [
                list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, list) else [item]
                for item in items
            ]
        )
        cells = [[null if cell is None else formats.as_text(cell) for cell in row] for row in rows]
        text = _csv(cells) if form == "csv" else "".join("\t".join(row) + "\n" for row in cells)
    return text.encode(errors="replace")


def _csv(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
