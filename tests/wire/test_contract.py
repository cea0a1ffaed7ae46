"""The generated messages are the published contract: every message, field, enum and method is compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from secure_dagu.wire.pb import coordinator_pb2

ROOT = Path(__file__).resolve().parents[2]
CONTRACT: dict[str, Any] = json.loads((ROOT / "tests/data/coordinator.v1.fields.json").read_text())
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}


def shape(field: FieldDescriptor) -> dict[str, Any]:
    kind = TYPES[field.type]
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return {
            "number": field.number,
            "type": "map",
            "label": "repeated",
            "map_key": TYPES[key.type],
            "map_value": TYPES[value.type],
        }
    told: dict[str, Any] = {
        "number": field.number,
        "type": kind,
        "label": "repeated" if field.is_repeated else "optional",
    }
    if named := field.message_type or field.enum_type:
        told["type_name"] = named.full_name
    if kind not in {"message"} and field.has_presence:
        told["proto3_optional"] = True
    return told


def test_every_message_and_field_has_the_published_name_number_and_type() -> None:
    ours = {
        name: {field.name: shape(field) for field in message.fields}
        for name, message in coordinator_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert ours == CONTRACT["messages"]


def test_every_enum_has_the_published_numbers() -> None:
    ours = {
        name: {value.name: value.number for value in enum.values}
        for name, enum in coordinator_pb2.DESCRIPTOR.enum_types_by_name.items()
    }
    assert ours == CONTRACT["enums"]


def test_every_method_has_the_published_shape() -> None:
    ours = {
        service.full_name: {
            method.name: {
                "input": method.input_type.full_name,
                "output": method.output_type.full_name,
                "client_streaming": method.client_streaming,
                "server_streaming": method.server_streaming,
                "path": f"/{service.full_name}/{method.name}",
            }
            for method in service.methods
        }
        for service in coordinator_pb2.DESCRIPTOR.services_by_name.values()
    }
    assert ours == CONTRACT["services"]


def test_the_committed_code_is_what_the_proto_generates() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "proto/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
