"""A process of its own that runs one jq program: `python -I jq_child.py <request>`, see `executors.jq_filter`.

A jq program may run for ever, eat all memory and read its process's environment; the library cannot be interrupted and
does not let other threads run meanwhile. So it runs here: killed with the step, with a limit on memory, and with the
environment of the step. Stands alone: nothing of secure_dagu is imported, which keeps its start short.

The request is a JSON file: `filter`, `data` (JSON text), `form` ("pretty", "raw" or "compact").
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

MEMORY_BYTES = 2 * 2**30


def shown(text: str, form: str) -> str:
    """Return one result, which jq has written as compact JSON, in the form asked for."""
    if form == "raw" and text.startswith('"'):
        return str(json.loads(text))
    value = json.loads(text, parse_float=_number)
    if form == "pretty":
        return json.dumps(value, indent=4, ensure_ascii=False)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _number(text: str) -> int | float:
    """Return a whole number without its fraction: jq knows no difference between 1.0 and 1."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def main() -> int:
    """Print the results of the program, one after another."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import jq

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # As text, because jq keeps the digits of large numbers in what it writes and loses them in what it hands over.
    program = f"{request['filter'].strip() or '.'}\n| tojson"
    out = sys.stdout.buffer
    try:
        for result in jq.compile(program).input_text(request["data"]):
            out.write(f"{shown(result, request['form'])}\n".encode(errors="replace"))
            out.flush()
    except (ValueError, RecursionError, MemoryError) as error:
        sys.stderr.write(f"jq: {str(error).strip() or 'out of memory'}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
