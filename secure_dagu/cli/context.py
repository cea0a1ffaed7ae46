"""`secure-dagu context`: other servers by name; `start`, `status` and the like go to one with --context NAME."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from secure_dagu.cli import flags, output
from secure_dagu.errors import InvalidRequest, SecureDaguError

if TYPE_CHECKING:
    from secure_dagu.config.load import Loaded
    from secure_dagu.contexts.book import Context, Contexts

SUMMARY = "Keep other servers by name; start, status and the like go to one with --context."
EXAMPLE = "secure-dagu context add prod --server https://ci.example.com:8080 --api-key-stdin <key.txt"
_ACTIONS = {
    "add": "keep a server by a name",
    "list": "list the contexts; * marks the current one",
    "remove": "forget a server and its key",
    "test": "find out whether a server answers, and as whom it knows us; else which layer is at fault",
    "update": "change what is said of a server",
    "use": "make a context the current one: commands go there without --context",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="its name")
        if name in ("add", "update"):
            _add_server_flags(action, is_new=name == "add")
        if name in ("list", "test"):
            action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


def _add_server_flags(parser: argparse.ArgumentParser, *, is_new: bool) -> None:
    parser.add_argument(
        "--server", metavar="URL", required=is_new,
        help="https://HOST:PORT of its web server; with a base path, the whole URL of the API, …/api/v1",
    )  # fmt: skip
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-stdin", action="store_true", help="read the API key from standard input, where nobody sees it"
    )
    key.add_argument("--api-key", metavar="KEY", help="the API key, seen by whoever lists processes: better by stdin")
    key.add_argument("--no-api-key", action="store_true", help="the server asks for none")
    parser.add_argument("--description", metavar="TEXT", help="what it is")
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        help="believe the CAs in this file and no others, PEM (default: those of this host)",
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=int, help="how long an answer may take (default 30)")
    parser.add_argument(
        "--insecure-http", action="store_true", default=None,
        help="speak http:// beyond this host; needs the exception http-plaintext",
    )  # fmt: skip
    # Dagu's; what it asks for cannot be had here.
    parser.add_argument("--skip-tls-verify", action="store_true", help=argparse.SUPPRESS)


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.cli import workflow
    from secure_dagu.contexts.book import Contexts

    loaded = workflow.settings_of(args)
    contexts = Contexts(loaded.settings.paths.contexts_dir)
    match args.action:
        case "add":
            contexts.add(_new(args))
        case "update":
            _update(args, contexts)
        case "list":
            _list(contexts, as_json=args.json)
        case "remove":
            was_current = contexts.current() == args.name
            contexts.remove(args.name)
            if was_current:
                output.say(f"note: {args.name} was the current context; it is local now")
        case "use":
            contexts.use(args.name)
        case "test":
            return await _test(args, loaded, contexts)
    return 0


# ── add, update ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _new(args: argparse.Namespace) -> Context:
    from secure_dagu.assembly.contexts import check_plaintext
    from secure_dagu.contexts import address
    from secure_dagu.contexts.book import LOCAL, Context, checked
    from secure_dagu.security.secret import Secret

    fields = _said(args)
    server = address.parse(args.server)
    check_plaintext(server, insecure_http=bool(args.insecure_http))
    if args.name == LOCAL:
        raise InvalidRequest("context local cannot be added", why="it is this host, and built in")
    key = _key(args)
    if key is None:
        key = _asked_key()
    made = Context(name=args.name, server=server, api_key=Secret(key), **fields)
    return checked(made)


def _update(args: argparse.Namespace, contexts: Contexts) -> None:
    from secure_dagu.assembly.contexts import check_plaintext
    from secure_dagu.contexts import address
    from secure_dagu.contexts.book import LOCAL
    from secure_dagu.security.secret import Secret

    fields = _said(args)
    if args.name == LOCAL:
        raise InvalidRequest("context local cannot be changed", why="it is this host, and built in")
    if args.server is not None:
        old, fields["server"] = contexts.get(args.name), address.parse(args.server)
        insecure = bool(args.insecure_http) or (old.insecure_http and fields["server"].origin == old.server.origin)
        check_plaintext(fields["server"], insecure_http=insecure)
        fields["insecure_http"] = insecure
    if (key := _key(args)) is not None:
        fields["api_key"] = Secret(key)
    if not fields:
        raise InvalidRequest(
            "nothing was changed", why="no flag says what", fix="see `secure-dagu context update --help`"
        )
    contexts.update(args.name, **fields)


def _said(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that flags name, but for server and key."""
    from pathlib import Path

    if args.skip_tls_verify:
        raise InvalidRequest(
            "--skip-tls-verify cannot be used", why="whoever answered would get the API key",
            fix="give the file of the server's CA: --ca-file",
        )  # fmt: skip
    fields: dict[str, Any] = {}
    if args.description is not None:
        fields["description"] = args.description
    if args.timeout is not None:
        fields["timeout_s"] = args.timeout
    if args.insecure_http:
        fields["insecure_http"] = True
    if args.ca_file is not None:
        if args.ca_file:
            from secure_dagu.link import https

            https.client_context(Path(args.ca_file))  # a wrong file is said now
        fields["ca_file"] = str(Path(args.ca_file).absolute()) if args.ca_file else ""
    return fields


def _key(args: argparse.Namespace) -> str | None:
    """Return the API key that was given; None: none was."""
    if args.no_api_key:
        return ""
    if args.api_key is not None:
        output.say("warning: an API key on the command line can be seen by others on this host; use --api-key-stdin")
        return str(args.api_key)
    if not args.api_key_stdin:
        return None
    from secure_dagu.contexts.book import MAX_KEY

    data = sys.stdin.buffer.read(MAX_KEY + 3)
    try:
        text = data.decode("ascii").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = "\0"  # refused as one with other characters
    if not text:
        raise InvalidRequest("no API key was given", why="standard input is empty", fix="or say --no-api-key")
    return text


def _asked_key() -> str:
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "no API key was given",
            fix="use --api-key-stdin and write it to standard input, or say --no-api-key where none is asked for",
        )
    from getpass import getpass

    return getpass("API key: ")


# ── list, test ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(contexts: Contexts, *, as_json: bool) -> None:
    from secure_dagu.contexts.book import LOCAL

    current, found = contexts.current(), []
    for name in contexts.names():
        try:
            found.append(contexts.get(name))
        except SecureDaguError as error:
            output.say(output.visible(f"warning: {error}" + (f"; {error.fix}" if error.fix else "")))
    if as_json:
        local = {"name": LOCAL, "current": current == LOCAL, "server": "", "description": "this host"}
        output.print_json({"contexts": [local, *(_document(one, current) for one in found)]})
        return
    from secure_dagu.cli.text import safe, table

    rows = [("", "NAME", "SERVER", "DESCRIPTION"), ("*" if current == LOCAL else "", LOCAL, "-", "this host")]
    rows += [
        ("*" if one.name == current else "", one.name, str(one.server), safe(one.description) or "-") for one in found
    ]
    print("\n".join(table(rows)))


def _document(context: Context, current: str) -> dict[str, object]:
    """Return a context as JSON: all but its key."""
    return {
        "name": context.name,
        "current": context.name == current,
        "server": str(context.server),
        "description": context.description,
        "hasApiKey": bool(context.api_key),
        "caFile": context.ca_file,
        "timeoutSeconds": context.timeout_s,
        "insecureHttp": context.insecure_http,
    }


async def _test(args: argparse.Namespace, loaded: Loaded, contexts: Contexts) -> int:
    from secure_dagu.assembly.contexts import reached
    from secure_dagu.cli import checks
    from secure_dagu.contexts.book import LOCAL
    from secure_dagu.security import checkup
    from secure_dagu.security.checkup import Check, Name

    found: list[Check] = []

    def tell(check: Check) -> None:
        if not args.json:
            checks.show(check)

    server = ""
    if args.name == LOCAL:
        found.append(checkup.ok(Name.CONFIG, "this host; no server is asked", target=str(loaded.home.config_dir)))
        tell(found[0])
    else:
        try:
            context = contexts.get(args.name)
            server = str(context.server)
            found.append(checkup.ok(Name.CONFIG, f"context {context.name}: {server}"))
            tell(found[0])
            async with reached(loaded, context, warn=output.say) as client:
                from secure_dagu.contexts import examine

                found += await examine.examine(client, tell)
        except SecureDaguError as error:
            found.append(checkup.failed(Name.CONFIG, error))
            tell(found[-1])
    code = 1 if checkup.exit_code(found) else 0
    if args.json:
        shown = [checks.as_json(check) for check in found]
        output.print_json({"ok": code == 0, "name": args.name, "server": server, "checks": shown})
    else:
        print(output.visible(checks.summary(found)))
    return code
