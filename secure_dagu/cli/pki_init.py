"""`secure-dagu pki init`: make a CA, or one half of an offline root with an online issuing CA."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secure_dagu.cli import output, passphrases, pki
from secure_dagu.errors import ConfigError

if TYPE_CHECKING:
    from secure_dagu.pki.directory import Initialised, KeyPlace

HELP = "make a CA in <home>/pki, with a certificate for the coordinator and one for the operator"
EXAMPLE = "secure-dagu pki init --advertise ci.example.com,10.0.0.7"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    pki.add_advertise(
        parser, "names and addresses under which workers dial the coordinator (default: this host's name)"
    )
    parser.add_argument(
        "--trust-domain",
        metavar="NAME",
        default="secure-dagu",
        help="first part of every identity (default secure-dagu)",
    )
    parser.add_argument(
        "--permit",
        metavar="DOMAIN[,DOMAIN…]",
        action="append",
        default=[],
        help="further domains in which this CA may ever name a coordinator; those of --advertise are permitted",
    )
    parser.add_argument(
        "--passphrase", action="store_true", help="keep the CA's key under a passphrase, which is asked for"
    )
    passphrases.add_flag(parser)
    parser.add_argument(
        "--pkcs11",
        metavar="URI",
        default="",
        help="make the CA's key in a token: pkcs11:token=NAME;object=LABEL?module-path=/path/to/module.so",
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument(
        "--offline-root", action="store_true", help="make a root that signs issuing CAs only, on a host without network"
    )
    half.add_argument(
        "--issuing-ca",
        action="store_true",
        help="make the key of an issuing CA and a request for the offline root; with --certificate take it into use",
    )
    parser.add_argument(
        "--certificate", metavar="DIR", help="with --issuing-ca: what `secure-dagu pki issue-ca` wrote, brought here"
    )
    pki.add_json(parser)


def run(args: argparse.Namespace, directory: Path, now: datetime) -> int:
    """Make it."""
    import socket

    from secure_dagu.assembly.recording import ca_created
    from secure_dagu.pki import issuing
    from secure_dagu.pki.directory import initialise

    advertised = args.advertise or [socket.gethostname()]
    if args.certificate and not args.issuing_ca:
        raise ConfigError("--certificate goes with --issuing-ca", fix="add --issuing-ca, or leave it out")
    if args.issuing_ca and args.certificate:
        adopted = issuing.adopt(
            directory, Path(args.certificate), advertised=advertised, now=now,
            passphrase=passphrases.source(args), actor=pki.actor(),
        )  # fmt: skip
        return _say(args, adopted)
    key = _key_place(args)
    if args.issuing_ca:
        request = issuing.request(directory, key=key, now=now)
        return _say_next(
            args, directory, request, f"on the offline host: secure-dagu pki issue-ca {request.name} --out DIR"
        )
    args.record(ca_created(args.trust_domain))
    if args.offline_root:
        root = issuing.new_root(
            directory, advertised=advertised, permit=args.permit, trust_domain=args.trust_domain, key=key, now=now
        )
        output.say(f"offline root of {root.trust_domain} in {directory}, until {root.not_after:%Y-%m-%d}")
        return _say_next(args, directory, directory / "ca.crt", "on the coordinator: secure-dagu pki init --issuing-ca")
    done = initialise(
        directory,
        advertised=advertised,
        trust_domain=args.trust_domain,
        now=now,
        permit=args.permit,
        key=key,
        actor=pki.actor(),
    )
    return _say(args, done)


def _key_place(args: argparse.Namespace) -> KeyPlace:
    from secure_dagu.pki.directory import KeyPlace

    if args.pkcs11:
        pin = passphrases.source(args)
        return KeyPlace(token=args.pkcs11, passphrase=pin() if pin is not None else None)
    if args.passphrase or args.passphrase_file:
        return KeyPlace(passphrase=passphrases.new(args.passphrase_file))
    return KeyPlace()


def _say(args: argparse.Namespace, done: Initialised) -> int:
    if args.json:
        output.print_json(
            {
                "directory": str(done.directory),
                "trust_domain": done.trust_domain,
                "ca": str(done.directory / "ca.crt"),
                "ca_not_after": pki.iso(done.ca_not_after),
                "permitted": list(done.permitted),
                "coordinator": pki.written(done.coordinator),
                "operator": pki.written(done.operator),
            }
        )
        return 0
    print(f"CA of {done.trust_domain} in {done.directory}, until {done.ca_not_after:%Y-%m-%d}")
    pki.print_written(done.coordinator)
    pki.print_written(done.operator)
    print(f"Keep the CA's key in {done.directory} safe: whoever has it can be anyone.")
    print("Next: secure-dagu pki issue worker NAME")
    return 0


def _say_next(args: argparse.Namespace, directory: Path, file: Path, then: str) -> int:
    if args.json:
        output.print_json({"directory": str(directory), "file": str(file)})
        return 0
    print(f"{file}\nNext, {then}")
    return 0
