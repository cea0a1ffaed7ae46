"""Write records for other systems: RFC 5424 syslog messages, and the octet counting of RFC 6587. Pure.

A message carries the record's line as it is, so the chain can be verified from what a syslog server kept; its
structured data repeats what one searches for.
"""

from __future__ import annotations

from secure_dagu.audit import chain
from secure_dagu.audit.chain import Record
from secure_dagu.audit.events import Outcome

_FACILITY = 13
"""Log audit (RFC 5424, table 1)."""
_SEVERITY = {Outcome.SUCCEEDED.value: 5, Outcome.DENIED.value: 4, Outcome.FAILED.value: 3}
"""Notice, warning, error."""
_SD_ID = "audit@32473"
"""32473 is the number for documentation and examples (RFC 5612): we have none of our own."""
_FIELDS = ("seq", "source", "outcome", "actor", "serial", "address", "target", "reason")


def rfc5424(line: bytes) -> bytes:
    """Return a line of the log as one syslog message, without a line end.

    Raises:
        ValueError: it is no record.
    """
    record = chain.read(line)
    priority = _FACILITY * 8 + _SEVERITY.get(record.outcome, 5)
    host = _name(record.host, 255)
    head = f"<{priority}>1 {record.time} {host} secure-dagu - {_name(record.action, 32)} {_data(record)} "
    return head.encode() + line.rstrip(b"\n")


def framed(message: bytes) -> bytes:
    """Return a message for a stream: its length in octets goes before it (RFC 6587, section 3.4.1)."""
    return b"%d %b" % (len(message), message)


def _data(record: Record) -> str:
    pairs = [(name, str(getattr(record, name))) for name in _FIELDS]
    pairs += [(_name(key, 32), str(value)) for key, value in record.details.items()]
    return f"[{_SD_ID} " + " ".join(f'{name}="{_escaped(text)}"' for name, text in pairs if text) + "]"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _name(text: str, limit: int) -> str:
    """Return a header field: printable ASCII without spaces and what SD names exclude, `-` when nothing is left."""
    return "".join(char for char in text if "!" <= char <= "~" and char not in '="]')[:limit] or "-"
