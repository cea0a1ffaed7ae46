"""Give the coordinator its issuing CA: the key as a private file in memory, the rest as links to what is mounted.

Arguments: the pki folder of the coordinator's home, the mounted key, the folder in memory, the mounted certificate of
the issuing CA, the coordinator's mounted certificate, and the mounted root.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(home: Path, mounted: Path, memory: Path, issuing: Path, coordinator: Path, root: Path) -> None:
    """Do it; at every start, for memory forgets."""
    os.umask(0o077)
    key = memory / "ca/issuing.key"
    key.parent.mkdir(exist_ok=True)  # whatever is mounted is root's and open to our group
    key.unlink(missing_ok=True)
    key.write_bytes(mounted.read_bytes())
    home.mkdir(parents=True, exist_ok=True)
    for name, target in (
        ("issuing.key", key), ("issuing.crt", issuing), ("coordinator.crt", coordinator), ("ca.crt", root),
    ):  # fmt: skip
        link = home / name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise SystemExit(f"{link} is of another CA: move it away, or leave peer.tls.helper.join off")
        link.symlink_to(target)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
