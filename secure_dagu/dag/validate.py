"""Check a workflow file without running anything: errors, warnings, and references without a value. Pure."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from secure_dagu.dag import nodes
from secure_dagu.dag.load import load_definition
from secure_dagu.dag.nodes import Mapping
from secure_dagu.dag.notices import Notice, find_notices
from secure_dagu.errors import DefinitionError


class Validation(Struct, frozen=True, kw_only=True):
    """What was found. A file is valid when there are no errors."""

    errors: tuple[str, ...] = ()
    """One sentence for each, with file:line:column and field in front; a mistyped key names the nearest one."""
    warnings: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def validate(
    text: str,
    *,
    file: str,
    base_config: str = "",
    show_unresolved: bool = False,
    read_schema: Callable[[str], str | None] = lambda _: None,
) -> Validation:
    """Return what is wrong with a workflow file, at the strict level (workflow language, sections 1.2 and 2.12).

    Args:
        text: the file's text.
        file: what to call it in messages.
        base_config: the text of `base.yaml`.
        show_unresolved: also report references that only a run can resolve.
        read_schema: as `load_definition` takes it.
    """
    try:
        definition = load_definition(text, file=file, base_config=base_config, strict=True, read_schema=read_schema)
    except DefinitionError as error:
        is_list = "not a valid workflow" in error.what and error.why
        return Validation(errors=tuple(error.why.splitlines()) if is_list else (str(error),))
    dags = [definition.main, *definition.locals.values()]
    documents = [node for node in nodes.parse(text, file=file) if isinstance(node, Mapping)] if "$" in text else []
    notices = [
        notice
        for document, dag in zip(documents, dags, strict=False)
        for notice in find_notices(document, dag, show_unresolved=show_unresolved)
    ]
    return Validation(warnings=definition.warnings, notices=tuple(notices))
