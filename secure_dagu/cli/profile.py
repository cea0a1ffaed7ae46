"""`secure-dagu profile`: named sets of variables and secrets that runs start with."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from secure_dagu.cli import flags, output
from secure_dagu.errors import InvalidRequest

if TYPE_CHECKING:
    from secure_dagu.local.profiles import Profile, Profiles

SUMMARY = "Keep named sets of variables and secrets; a run takes one with --profile."
EXAMPLE = "secure-dagu profile set-secret prod DB_PASSWORD --value-stdin <password.txt"
_ACTIONS = {
    "create": "make an empty profile",
    "list": "list the profiles",
    "show": "show a profile; secrets by their names only",
    "enable": "let runs use a profile",
    "disable": "refuse runs that name it",
    "delete": "remove a profile with its secrets",
    "set-var": "set a variable",
    "set-secret": "set a secret, which is masked in logs and never shown",
    "delete-key": "remove a variable or a secret",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if name != "list":
            action.add_argument("profile", metavar="PROFILE", help="its name")
        if name in ("set-var", "set-secret", "delete-key"):
            action.add_argument("key", metavar="KEY", help="name of the variable")
        if name in ("set-var", "set-secret"):
            action.add_argument("value", metavar="VALUE", nargs="?", help="its value")
        if name == "set-secret":
            action.add_argument(
                "--value-stdin", action="store_true", help="read the value from standard input, where nobody sees it"
            )
        if name == "create":
            action.add_argument("--description", metavar="TEXT", default="", help="what it is for")
        if name in ("list", "show"):
            action.add_argument("--json", action="store_true", help="print one JSON document")
        flags.add_common_flags(action)


async def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from secure_dagu.config.load import home_of
    from secure_dagu.local.profiles import Profiles

    profiles = Profiles(home_of(args).config_dir / "profiles")
    match args.action:
        case "create":
            profiles.create(args.profile, description=args.description)
        case "list":
            _list(profiles, as_json=args.json)
        case "show":
            _show(profiles.get(args.profile), as_json=args.json)
        case "enable" | "disable":
            profiles.enable(args.profile, is_enabled=args.action == "enable")
        case "delete":
            profiles.delete(args.profile)
        case "set-var":
            if args.value is None:
                raise InvalidRequest("accepts 3 arg(s), received 2", fix="give the value")
            profiles.set(args.profile, args.key, args.value, is_secret=False)
        case "set-secret":
            profiles.set(args.profile, args.key, _secret(args), is_secret=True)
        case "delete-key":
            profiles.delete_key(args.profile, args.key)
    return 0


def _secret(args: argparse.Namespace) -> str:
    """Return the value of a secret: from standard input, which asks nobody who lists processes; else from the words."""
    if args.value is not None and args.value_stdin:
        raise InvalidRequest("VALUE and --value-stdin exclude each other")
    if args.value is not None:
        output.say("warning: a secret on the command line can be seen by others on this host; use --value-stdin")
        return str(args.value)
    if not args.value_stdin:
        if not sys.stdin.isatty():
            raise InvalidRequest("no value was given", fix="use --value-stdin and write the value to standard input")
        from getpass import getpass

        return getpass("Value: ")
    from secure_dagu.local.profiles import MAX_VALUE_BYTES

    data = sys.stdin.buffer.read(MAX_VALUE_BYTES + 2)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the value is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def _list(profiles: Profiles, *, as_json: bool) -> None:
    found = [profiles.get(name) for name in profiles.names()]
    if as_json:
        output.print_json({"profiles": [_document(profile) for profile in found]})
        return
    if not found:
        print("No profiles found")
        return
    from secure_dagu.cli.text import safe, table

    rows = [("NAME", "ENABLED", "VARIABLES", "SECRETS", "DESCRIPTION")]
    rows += [
        (
            item.name, "yes" if item.is_enabled else "no", str(len(item.variables)), str(len(item.secrets)),
            safe(item.description) or "-",
        )
        for item in found
    ]  # fmt: skip
    print("\n".join(table(rows)))


def _show(profile: Profile, *, as_json: bool) -> None:
    if as_json:
        output.print_json(_document(profile))
        return
    from secure_dagu.cli.text import safe

    lines = [f"name: {profile.name}", f"enabled: {'yes' if profile.is_enabled else 'no'}"]
    if profile.description:
        lines.append(f"description: {safe(profile.description)}")
    lines += [f"{key}={safe(value)}" for key, value in sorted(profile.variables.items())]
    lines += [f"{key}=*******" for key in sorted(profile.secrets)]
    print("\n".join(lines))


def _document(profile: Profile) -> dict[str, object]:
    return {
        "name": profile.name,
        "enabled": profile.is_enabled,
        "description": profile.description,
        "variables": dict(sorted(profile.variables.items())),
        "secrets": sorted(profile.secrets),
    }
