"""Render Go text/template source: a small interpreter, bounded in every direction. Pure.

The semantics are Go's with `missingkey=error`; the functions are Go's own, those of section 4.4 of the workflow
language, and the part of sprig that reads no environment, clock, chance or network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from secure_dagu.dag import go_text
from secure_dagu.dag import gotemplate_parse as tree
from secure_dagu.dag.gotemplate_functions import FUNCTIONS, Failure, arity, is_true
from secure_dagu.dag.gotemplate_parse import failure

MAX_TEMPLATE = 2**20
"""Characters of a template."""

MAX_OUTPUT = 16 * 2**20
"""Characters of the result."""

MAX_WORK = 300_000
"""Nodes run, functions called and, 64 a unit, characters made; about a second of work."""

_LAZY = frozenset({"and", "or"})


def render(text: str, data: Any, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """Return the template `text` rendered with `data` as its dot.

    Args:
        text: the template.
        data: plain data: mappings, sequences, strings, numbers, booleans, None. It is not changed.
        functions: more functions by name, over the known ones.

    Raises:
        DefinitionError: the template is malformed, refers to a missing key, calls a function wrongly, or goes beyond a
            limit; `why` names the line.
    """
    if len(text) > MAX_TEMPLATE:
        raise failure(1, f"the template is longer than {MAX_TEMPLATE} characters")
    known = {**FUNCTIONS, **functions} if functions else FUNCTIONS
    parsed = tree.parse(text, {*known, *_LAZY})
    try:
        dot = _owned(data)
    except RecursionError:
        raise failure(1, "the data is nested too deeply") from None
    run = _Run(parsed.defined, known)
    run.template(parsed.nodes, dot, depth=0)
    return "".join(run.pieces)


def _owned(data: Any) -> Any:
    """Return a copy of plain data that functions such as `set` may change."""
    if isinstance(data, Mapping):
        return {str(key): _owned(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_owned(value) for value in data]
    return data


class _Jumped(Exception):
    def __init__(self, keyword: str) -> None:
        self.keyword = keyword


_Scope = list[tuple[str, Any]]
"""Variables, innermost last."""

_NONE = object()
"""No value from an earlier command of a pipeline."""


class _Run(Struct):
    """One rendering."""

    defined: Mapping[str, tuple[tree.Node, ...]]
    functions: Mapping[str, Callable[..., Any]]
    pieces: list[str] = field(default_factory=list)
    size: int = 0
    work: int = 0
    line: int = 1

    def template(self, nodes: tuple[tree.Node, ...], dot: Any, *, depth: int) -> None:
        self.nodes(nodes, dot, [("$", dot)], depth)

    def nodes(self, nodes: tuple[tree.Node, ...], dot: Any, scope: _Scope, depth: int) -> None:
        known = len(scope)
        for node in nodes:
            self.spend(1)
            match node:
                case tree.Text(text=text):
                    self.write(text)
                case tree.Pipe():
                    value = self.pipe(node, dot, scope)
                    if not node.names:
                        self.write("<no value>" if value is None else self.shown(value))
                case tree.Branch(keyword="range"):
                    self.range(node, dot, scope, depth)
                case tree.Branch():
                    outer = len(scope)
                    value = self.pipe(node.pipe, dot, scope)
                    if is_true(value):
                        self.nodes(node.body, value if node.keyword == "with" else dot, scope, depth)
                    else:
                        self.nodes(node.otherwise, dot, scope, depth)
                    del scope[outer:]
                case tree.Call():
                    self.call_template(node, dot, scope, depth)
                case tree.Jump(keyword=keyword):
                    del scope[known:]
                    raise _Jumped(keyword)
        del scope[known:]

    def call_template(self, node: tree.Call, dot: Any, scope: _Scope, depth: int) -> None:
        self.line = node.line
        nodes = self.defined.get(node.name)
        if nodes is None:
            raise failure(node.line, f'template "{node.name[:80]}" not defined')
        if depth >= tree.MAX_DEPTH:
            raise failure(node.line, f"templates call each other deeper than {tree.MAX_DEPTH}")
        self.template(nodes, None if node.pipe is None else self.pipe(node.pipe, dot, scope), depth=depth + 1)

    def range(self, node: tree.Branch, dot: Any, scope: _Scope, depth: int) -> None:
        value = self.pipe(node.pipe, dot, scope, sets=False)
        pairs = self.pairs(value)
        names, outer = node.pipe.names, len(scope)
        is_empty = True
        for key, item in pairs:
            self.spend(1)
            is_empty = False
            if names:
                self.bind(node.pipe, scope, names[-1], item)
                if len(names) == 2:
                    self.bind(node.pipe, scope, names[0], key)
            try:
                self.nodes(node.body, item, scope, depth)
            except _Jumped as jump:
                if jump.keyword == "break":
                    break
            finally:
                del scope[outer:]
        if is_empty:
            self.nodes(node.otherwise, dot, scope, depth)

    def pairs(self, value: Any) -> Any:
        """Return what a range goes over: key and item, maps by sorted key, a number as a list of that length."""
        if value is None:
            return ()
        if isinstance(value, Mapping):
            return sorted(value.items())
        if isinstance(value, list | tuple):
            return list(enumerate(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return ((index, index) for index in range(value))
        raise failure(self.line, f"range can't iterate over {self.shown(value)[:80]}")

    # ---------------------------------------------------------------------------------------------------- pipelines

    def pipe(self, pipe: tree.Pipe, dot: Any, scope: _Scope, *, sets: bool = True) -> Any:
        """Return the value of a pipeline, after its variables took it."""
        value: Any = _NONE
        for command in pipe.commands:
            self.line = pipe.line
            value = self.command(command, dot, scope, value)
        if sets:
            for name in pipe.names:
                self.bind(pipe, scope, name, value)
        return value

    def bind(self, pipe: tree.Pipe, scope: _Scope, name: str, value: Any) -> None:
        if not pipe.assigns:
            scope.append((name, value))
            return
        for index in range(len(scope) - 1, -1, -1):
            if scope[index][0] == name:
                scope[index] = (name, value)
                return

    def command(self, operands: tuple[tree.Operand, ...], dot: Any, scope: _Scope, final: Any) -> Any:
        first, *rest = operands
        if isinstance(first, tree.Function):
            return self.call(first.name, rest, dot, scope, final)
        if rest or final is not _NONE:
            raise failure(self.line, f"can't give argument to non-function {_source(first)}")
        return self.operand(first, dot, scope)

    def operand(self, operand: tree.Operand, dot: Any, scope: _Scope) -> Any:
        match operand:
            case tree.Literal(value=value):
                return value
            case tree.Dot():
                return dot
            case tree.Variable(name=name):
                for known, value in reversed(scope):
                    if known == name:
                        return value
                raise failure(self.line, f'undefined variable "{name}"')
            case tree.Fields(of=of, names=names):
                value = self.operand(of, dot, scope)
                for name in names:
                    value = self.field(value, name)
                return value
            case tree.Pipe():
                line = self.line
                value = self.pipe(operand, dot, scope)
                self.line = line
                return value
            case tree.Function(name=name):
                return self.call(name, [], dot, scope, _NONE)

    def field(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            if name not in value:
                raise failure(self.line, f'map has no entry for key "{name}"')
            return value[name]
        if value is None:
            raise failure(self.line, f'nil data; no entry for key "{name}"')
        raise failure(self.line, f"can't evaluate field {name} in type {go_text.type_name(value)}")

    def call(self, name: str, operands: list[tree.Operand], dot: Any, scope: _Scope, final: Any) -> Any:
        if name in _LAZY:
            return self.lazy(name, operands, dot, scope, final)
        values = [self.operand(item, dot, scope) for item in operands]
        if final is not _NONE:
            values.append(final)
        function = self.functions[name]
        least, most = arity(function)
        if len(values) < least or (most is not None and len(values) > most):
            want = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise failure(self.line, f"wrong number of args for {name}: want {want} got {len(values)}")
        try:
            result = function(*values)
        except Failure as problem:
            raise failure(self.line, f"error calling {name}: {problem}") from None
        except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as problem:
            raise failure(self.line, f"error calling {name}: wrong arguments ({type(problem).__name__})") from problem
        self.spend(1 + (len(result) // 64 if isinstance(result, str | list | dict) else 0))
        return result

    def lazy(self, name: str, operands: list[tree.Operand], dot: Any, scope: _Scope, final: Any) -> Any:
        """Evaluate `and` and `or`, which stop at the first operand that decides."""
        if not operands and final is _NONE:
            raise failure(self.line, f"wrong number of args for {name}: want at least 1 got 0")
        value: Any = None
        self.spend(1)
        for operand in operands:
            value = self.operand(operand, dot, scope)
            if is_true(value) == (name == "or"):
                return value
        return value if final is _NONE else final

    # ------------------------------------------------------------------------------------------------------- limits

    def shown(self, value: Any) -> str:
        try:
            return go_text.show(value)
        except ValueError as problem:
            raise failure(self.line, str(problem)) from None

    def write(self, text: str) -> None:
        self.size += len(text)
        if self.size > MAX_OUTPUT:
            raise failure(self.line, f"the result is longer than {MAX_OUTPUT} characters")
        self.pieces.append(text)

    def spend(self, units: int) -> None:
        self.work += units
        if self.work > MAX_WORK:
            raise failure(self.line, "the template does not come to an end: too many iterations, or too much text")


def _source(operand: tree.Operand) -> str:
    match operand:
        case tree.Fields(names=names):
            return "." + ".".join(names)
        case tree.Variable(name=name):
            return name
        case _:
            return "the first operand"
