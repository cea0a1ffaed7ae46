"""Definitions to begin with: what *New* offers."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Starter(Struct, frozen=True, kw_only=True):
    """One of them."""

    key: str
    words: str
    text: str


STARTERS: Final = (
    Starter(
        key="hello",
        words="One step",
        text="""\
description: What it does, in a sentence.
steps:
  - id: hello
    run: echo "Hello from $(hostname)"
""",
    ),
    Starter(
        key="graph",
        words="Steps side by side, then one that needs both",
        text="""\
description: What it does, in a sentence.
steps:
  - id: users
    run: echo "12 users"
  - id: orders
    run: echo "34 orders"
  - id: report
    depends: [users, orders]
    run: echo "both are here"
""",
    ),
    Starter(
        key="schedule",
        words="Every night, tried again when it fails",
        text="""\
description: What it does, in a sentence.
labels: [nightly]
schedule: "30 2 * * *"
steps:
  - id: collect
    run: echo collected
    retry_policy:
      limit: 3
      interval_sec: 60
handler_on:
  failure:
    run: echo "it failed"
""",
    ),
    Starter(
        key="params",
        words="With parameters that are asked for",
        text="""\
description: What it does, in a sentence.
params:
  - name: environment
    enum: [staging, production]
    default: staging
    description: Where to
  - name: count
    type: integer
    default: 1
    minimum: 1
    maximum: 10
steps:
  - id: show
    run: echo "${params.count} for ${params.environment}"
""",
    ),
    Starter(
        key="approval",
        words="A person approves before it goes on",
        text="""\
description: What it does, in a sentence.
steps:
  - id: prepare
    run: echo prepared
    approval:
      prompt: Shall it be released?
  - id: release
    depends: prepare
    run: echo released
""",
    ),
    Starter(
        key="worker",
        words="On a worker with certain labels",
        text="""\
description: What it does, in a sentence.
worker_selector:
  gpu: "true"
steps:
  - id: train
    run: echo "on $(hostname)"
""",
    ),
)
