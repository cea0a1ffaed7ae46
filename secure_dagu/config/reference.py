"""Write docs/reference/configuration.md from the declarations; a test compares the page with this."""

from __future__ import annotations

from secure_dagu.config.settings import SECTIONS, Setting, all_settings

_HEAD = """\
# Configuration

Made from `secure_dagu/config/settings.py` by `secure-dagu config docs`; do not edit.

A typed flag wins over a variable, a variable over the file, the file over the default.
The file is `config.yaml` in the home directory, or what `--config` names; it is YAML with the keys below.
The home directory is `--dagu-home`, else `DAGU_HOME`, else `~/.dagu` if it exists, else `~/.config/dagu` for
configuration and `$XDG_DATA_HOME/dagu` for data.
Unknown keys are errors that name the nearest known one.
Keys and variables that Dagu knows and this version does not use are accepted with a warning.
What is set to nothing, such as `cert_file: ""`, counts as not set.

Durations are Go's: `500ms`, `30s`, `1h30m`.
Truth values are `true`, `false`, `1`, `0`, `t`, `f` in Go's spellings.
Lists are YAML lists or texts with commas; labels are YAML maps or `key=value,key=value`.
An invalid value is an error, never a default.
"""

_TABLE = "| key | value | default | variable | flag | meaning |\n|---|---|---|---|---|---|"

_PEER = """\
Without `peer.*` files a process uses the standard place, `<home>/pki`: a coordinator `coordinator.crt` and `.key`,
operator commands `operator.crt` and `.key`, a worker `<worker id up to @>.crt` and `.key`, each with `ca.crt`.
With them, all three must be given.
If a part is missing the process does not start; it never falls back to plaintext.
"""


def configuration_page() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for section, cls in SECTIONS.items():
        parts.append(f"## {section}\n\n{(cls.__doc__ or '').strip()}\n")
        if section == "peer":
            parts.append(_PEER)
        rows = [_row(item) for item in all_settings().values() if item.section == section]
        parts.append("\n".join([_TABLE, *rows, ""]))
    return "\n".join(parts)


def _row(item: Setting) -> str:
    flag = f"`{item.flag}`" + (f", `{item.short}`" if item.short else "") if item.flag else ""
    variables = ", ".join(f"`{name}`" for name in item.env)
    default = f"`{item.default}`" if item.default else ""
    word = item.word.replace("|", " or ")
    return f"| `{item.key}` | {word} | {default} | {variables} | {flag} | {item.help} |"
