"""Generate secure_dagu/wire/pb from proto/, or with --check say whether the committed files are what it would write."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "secure_dagu" / "wire" / "pb"
PROTOS = ("coordinator/v1/coordinator.proto", "secure_dagu/v1/extensions.proto")
INIT = '"""Generated from proto/ by proto/generate.py. Do not edit."""\n'


def generate(out: Path) -> dict[str, str]:
    """Run protoc into `out`; return relative path → text, with imports rewritten to this package."""
    plugins = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
        f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out={out}", f"--mypy_grpc_out={out}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        *PROTOS,
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603
    texts: dict[str, str] = {}
    for path in sorted(out.rglob("*.py*")):
        text = path.read_text()
        # protoc writes imports relative to the proto root; ours live in secure_dagu.wire.pb, under flat names.
        for package in ("coordinator.v1", "secure_dagu.v1"):
            text = text.replace(f"from {package} import", "from secure_dagu.wire.pb import")
            text = (
                text.replace(f"import {package}.", "import secure_dagu.wire.pb.")
                .replace(f"{package}.coordinator_pb2", "secure_dagu.wire.pb.coordinator_pb2")
                .replace(f"{package}.extensions_pb2", "secure_dagu.wire.pb.extensions_pb2")
            )
        texts[path.name] = text
    texts["__init__.py"] = INIT
    return texts


def main() -> int:
    """Write the files, or compare them."""
    with tempfile.TemporaryDirectory() as folder:
        texts = generate(Path(folder))
    if "--check" in sys.argv:
        stale = [name for name, text in texts.items() if not (OUT / name).is_file() or (OUT / name).read_text() != text]
        extra = [path.name for path in OUT.glob("*.py*") if path.name not in texts]
        for name in stale + extra:
            print(f"secure_dagu/wire/pb/{name} is not what proto/ generates: run `make generate`", file=sys.stderr)
        return 1 if stale or extra else 0
    OUT.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (OUT / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
