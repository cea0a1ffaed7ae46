"""Identity by rule, for certificates of other CAs: a URI name, a DNS name or the subject → role, name, labels. Pure.

`peer.identity_rules` is a list. Each rule says what a certificate must carry, as a pattern in which `{word}` stands for
one part, and who its holder then is:

    - uri: spiffe://corp.example/ns/dagu/sa/{name}          role: worker
    - dns: "{name}.{zone}.workers.corp.example"             role: worker        labels: {zone: "{zone}"}
    - subject: CN={name},OU=dispatchers,O=Corp              role: dispatcher
    - dns: coordinator.corp.example                         role: coordinator   name: main
    - spiffe: secure-dagu                                   (certificates of `secure-dagu pki`, labels included)

Exactly one rule must match, and in only one way; otherwise the certificate has no identity and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, get_args

from msgspec import Struct

from secure_dagu.dispatch.model import Role
from secure_dagu.errors import InvalidRequest
from secure_dagu.security.grants import NOTHING, Grants, parse_grants
from secure_dagu.security.identity import NAME, Identity, parse_identity

MAX_RULES: Final = 100
MAPPED_DOMAIN: Final = "mapped"
"""The trust domain of every identity that a rule made, so that it is never taken for one of ours."""

Kind = Literal["uri", "dns", "subject", "spiffe"]
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_ROLES: Final = frozenset(Role) - {Role.ANONYMOUS}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")
_PART: Final = {
    "uri": r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?",
    "dns": r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?",
    "subject": r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?",
}
"""What a placeholder matches: never a separator, so that it cannot reach into the next part."""
_SEPARATOR: Final = {"uri": "/", "dns": ".", "subject": ","}


class Presented(Struct, frozen=True, kw_only=True):
    """What a certificate says of its holder."""

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    subject: str = ""
    """As RFC 4514 writes it, most specific part first: `CN=gpu-1,OU=workers,O=Corp`."""
    grants: Grants = NOTHING
    """The labels in our own extension."""


class Holder(Struct, frozen=True):
    """Who holds a certificate, and what it grants."""

    identity: Identity
    grants: Grants = NOTHING


class Rule(Struct, frozen=True, kw_only=True):
    """One rule, checked by `parse_rules`."""

    kind: Kind
    pattern: str
    role: Role = Role.ANONYMOUS
    """Of its holders; unused for `spiffe`, where the certificate says it."""
    name: str = "{name}"
    labels: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.pattern}"


def parse_rules(raw: object) -> tuple[Rule, ...]:
    """Read the setting.

    Raises:
        ValueError: not a list of rules, or one that could never match, names nobody or uses an unknown word.
    """
    if not isinstance(raw, list | tuple):
        raise ValueError("it is a list of rules")  # noqa: TRY004 - settings know no other error
    if len(raw) > MAX_RULES:
        raise ValueError(f"{len(raw)} rules are more than {MAX_RULES}")
    rules = tuple(_parse_rule(number, item) for number, item in enumerate(raw, start=1))
    for number, rule in enumerate(rules, start=1):
        if rule in rules[: number - 1]:
            raise ValueError(f"rule {number} is there twice, so nothing could match exactly one")
    return rules


def holder_of(presented: Presented, rules: Sequence[Rule]) -> Holder:
    """Return who a certificate names; without rules, by its one spiffe URI.

    Raises:
        InvalidRequest: nobody, or more than one.
    """
    if not rules:
        return Holder(identity_of(presented.uris), presented.grants)
    found = [holder for rule in rules for holder in _matches(rule, presented)]
    if len(found) == 1:
        return found[0]
    carries = ", ".join((*presented.uris, *presented.dns[:5], presented.subject))[:300]
    raise InvalidRequest(
        "the certificate names no identity",
        why=f"{len(found) or 'no'} rules of peer.identity_rules match it, and exactly one must; it carries {carries!r}",
        fix="`secure-dagu pki verify FILE` shows what a certificate is taken for",
    )


def identity_of(uris: Sequence[str]) -> Identity:
    """Return the identity in the one URI name of a certificate of ours.

    Raises:
        InvalidRequest: not exactly one (X509-SVID, section 2), or one that is not an identity.
    """
    if len(uris) != 1:
        raise InvalidRequest(
            "the certificate names no identity",
            why=f"it carries {len(uris)} URI names, and exactly one spiffe:// URI is wanted",
            fix="issue one with `secure-dagu pki issue ROLE NAME`",
        )
    return parse_identity(uris[0])


def _matches(rule: Rule, presented: Presented) -> list[Holder]:
    if rule.kind == "spiffe":
        try:
            own = identity_of(presented.uris)
        except InvalidRequest:
            return []
        return [Holder(own, presented.grants)] if own.trust_domain == rule.pattern else []
    # Two URI names are two identities, whichever of them a rule would take.
    values = {
        "uri": presented.uris if len(presented.uris) == 1 else (),
        "dns": tuple(dict.fromkeys(name.rstrip(".").lower() for name in presented.dns)),
        "subject": (presented.subject,),
    }[rule.kind]
    expression = _expression(rule.kind, rule.pattern)
    holders = []
    for value in values:
        found = expression.fullmatch(value)
        if found is None:
            continue
        name = _filled(rule.name, found.groupdict())
        if NAME.fullmatch(name):
            grants = Grants(frozenset((key, _filled(text, found.groupdict())) for key, text in rule.labels))
            holders.append(Holder(Identity(MAPPED_DOMAIN, rule.role, name), grants))
    return holders


@lru_cache(maxsize=MAX_RULES)
def _expression(kind: str, pattern: str) -> re.Pattern[str]:
    """Return the pattern as an expression."""
    parts = _PLACEHOLDER.split(pattern)  # text, word, text, word, … text
    return re.compile(
        "".join(
            f"(?P<{part}>{_PART[kind]})" if position % 2 else re.escape(part) for position, part in enumerate(parts)
        )
    )


def _filled(template: str, words: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: words[found[1]], template)


def _parse_rule(number: int, item: object) -> Rule:
    if not isinstance(item, Mapping):
        raise ValueError(f"rule {number} is no map")  # noqa: TRY004 - settings know no other error
    kinds = [kind for kind in _KINDS if kind in item]
    if len(kinds) != 1:
        raise ValueError(f"rule {number} needs exactly one of {', '.join(_KINDS)}")
    kind, unknown = kinds[0], set(item) - {kinds[0], "role", "name", "labels"}
    pattern = item[kind]
    if unknown or not isinstance(pattern, str) or not 0 < len(pattern) <= 500:
        raise ValueError(
            f"rule {number}: {f'unknown {sorted(map(str, unknown))[0]!r}' if unknown else f'{kind} is no text'}"
        )
    if kind == "spiffe":
        if len(item) > 1:
            raise ValueError(f"rule {number}: a spiffe rule takes everything from the certificate")
        return Rule(kind="spiffe", pattern=pattern)
    role = item.get("role")
    if role not in _ROLES:
        raise ValueError(f"rule {number} needs a role: {', '.join(sorted(_ROLES))}")
    words = _PLACEHOLDER.findall(pattern)
    name = str(item.get("name", "{name}"))
    labels = _parse_labels(number, item.get("labels", {}))
    between = _PLACEHOLDER.split(pattern)[2:-1:2]
    if (
        "{" in _PLACEHOLDER.sub("", pattern)
        or len(words) != len(set(words))
        or not all(_SEPARATOR[kind] in text for text in between)
    ):
        raise ValueError(
            f"rule {number}: {pattern!r} is no pattern; {{word}} stands for one part, each word once, with a "
            f"{_SEPARATOR[kind]!r} between two"
        )
    for template in (name, *(value for _, value in labels)):
        if missing := set(_PLACEHOLDER.findall(template)) - set(words):
            raise ValueError(f"rule {number}: {{{sorted(missing)[0]}}} is not in {pattern!r}; say `name:` or use it")
    if not _PLACEHOLDER.search(name) and not NAME.fullmatch(name):
        raise ValueError(f"rule {number}: {name!r} cannot be a name")
    return Rule(
        kind=kind, pattern=pattern.lower() if kind == "dns" else pattern, role=Role(role), name=name, labels=labels
    )


def _parse_labels(number: int, raw: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"rule {number}: labels are a map of KEY: VALUE")  # noqa: TRY004 - as above
    pairs = tuple((str(key), str(value)) for key, value in raw.items())
    try:
        # A placeholder stands for letters and digits: check the labels with one in its place.
        parse_grants([f"{key}={_PLACEHOLDER.sub('x', value)}" for key, value in pairs])
    except InvalidRequest as problem:
        raise ValueError(f"rule {number}: {problem}") from problem
    return pairs
