"""Parse Go text/template source into a tree. Pure.

The grammar is that of Go's `text/template`: actions between `{{` and `}}`, trim markers, comments, pipelines, `if`,
`range`, `with`, `define`, `block`, `template`, `break` and `continue` (workflow language, section 4.4).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator

from msgspec import Struct, field

from secure_dagu.dag import go_text
from secure_dagu.errors import DefinitionError

MAX_DEPTH = 100
"""Levels of nested blocks, parentheses and template calls."""


def failure(line: int, problem: str) -> DefinitionError:
    """Return the error of a template; its `why` is `line N: <problem>`."""
    return DefinitionError("the template cannot be rendered", why=f"line {line}: {problem}", fix="correct the template")


# ------------------------------------------------------------------------------------------------------------ the tree


class Literal(Struct, frozen=True):
    """A string, number, boolean, or nil."""

    value: str | int | float | bool | None


class Dot(Struct, frozen=True):
    """The cursor, `.`."""


class Variable(Struct, frozen=True):
    """`$x`; `$` itself has the name `$`."""

    name: str


class Function(Struct, frozen=True):
    """A function's name."""

    name: str


class Fields(Struct, frozen=True):
    """`.a.b` of an operand."""

    of: Operand
    names: tuple[str, ...]


class Pipe(Struct, frozen=True):
    """Commands joined by `|`, with the variables that take the result."""

    line: int
    commands: tuple[tuple[Operand, ...], ...]
    names: tuple[str, ...] = ()
    assigns: bool = False
    """`=` instead of `:=`."""


Operand = Literal | Dot | Variable | Function | Fields | Pipe


class Text(Struct, frozen=True):
    """Text outside actions."""

    text: str


class Branch(Struct, frozen=True):
    """`if`, `with` or `range`."""

    keyword: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


class Call(Struct, frozen=True):
    """`{{template "name" pipe}}`."""

    line: int
    name: str
    pipe: Pipe | None


class Jump(Struct, frozen=True):
    """`break` or `continue`."""

    keyword: str


Node = Text | Pipe | Branch | Call | Jump


class Template(Struct, frozen=True):
    """A parsed text: its own nodes, and the templates it defines."""

    nodes: tuple[Node, ...]
    defined: dict[str, tuple[Node, ...]]


# ----------------------------------------------------------------------------------------------------------- the lexer

_COMMENT = re.compile(r"\{\{(?:-\s\s*)?/\*.*?\*/(?:\s\s*-)?\}\}", re.DOTALL)
_END = re.compile(r"\s+-\}\}|\}\}")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<raw>`[^`]*`)
    |(?P<char>'(?:[^'\\\n]|\\[^\n])+')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?))
    |(?P<field>\.[^\W\d]\w*)
    |(?P<dot>\.)
    |(?P<variable>\$\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>:=|=|\||\(|\)|,)""",
    re.VERBOSE,
)
_KEYWORDS = frozenset({"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"})


class _Token(Struct, frozen=True):
    kind: str
    text: str


class _Action(Struct):
    """The tokens of one action, read from the left."""

    line: int
    tokens: list[_Token]
    at: int = 0

    def peek(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "")

    def take(self) -> _Token:
        token = self.peek()
        self.at += 1
        return token

    def peek_past_space(self) -> _Token:
        self.skip_space()
        return self.peek()

    def skip_space(self) -> None:
        while self.peek().kind == "space":
            self.at += 1

    def takes(self, text: str) -> bool:
        """Consume a keyword or sign if it comes next."""
        token = self.peek_past_space()
        if token.kind in ("word", "sign") and token.text == text:
            self.at += 1
            return True
        return False


def _pieces(text: str) -> Iterator[str | _Action]:
    """Yield the text between actions, and the actions; trim markers have done their work."""
    at = 0
    line = 1
    trims = False
    while True:
        start = text.find("{{", at)
        piece = text[at:] if start < 0 else text[at:start]
        line += piece.count("\n")
        if trims:
            piece = piece.lstrip(" \t\r\n")
        if start < 0:
            yield piece
            return
        if re.match(r"-\s", text[start + 2 : start + 4]):
            piece = piece.rstrip(" \t\r\n")
        if piece:
            yield piece
        comment = _COMMENT.match(text, start)
        if comment is not None:
            at = comment.end()
            trims = comment[0].endswith("-}}")
        else:
            tokens, at, trims = _tokens(text, start, line)
            yield _Action(line, tokens)
        line += text.count("\n", start, at)


def _tokens(text: str, start: int, line: int) -> tuple[list[_Token], int, bool]:
    """Return the tokens of the action at `start`, where it ends, and whether it trims what follows."""
    at = start + 2
    if re.match(r"-\s", text[at : at + 2]):
        at += 1
    tokens: list[_Token] = []
    while True:
        end = _END.match(text, at)
        if end is not None:
            return tokens, end.end(), "-" in end[0]
        found = _TOKEN.match(text, at)
        if found is None:
            if at >= len(text):
                raise failure(line, "unclosed action")
            if text.startswith("/*", at):
                raise failure(line, "unclosed comment, or a comment that is not alone in its action")
            if text[at] in "\"'`":
                raise failure(line, "unterminated quoted text")
            raise failure(line, f"unexpected {text[at]!r} in an action")
        tokens.append(_Token(str(found.lastgroup), found[0]))
        at = found.end()


# ---------------------------------------------------------------------------------------------------------- the parser


def parse(text: str, functions: Container[str]) -> Template:
    """Return the tree of `text`.

    Args:
        text: the template.
        functions: names that may be called.

    Raises:
        DefinitionError: it is not a template; `why` names the line.
    """
    parser = _Parser(_pieces(text), functions)
    nodes, _ = parser.nodes(depth=0, closes=())
    return Template(nodes, parser.defined)


class _Parser(Struct):
    pieces: Iterator[str | _Action]
    functions: Container[str]
    defined: dict[str, tuple[Node, ...]] = field(default_factory=dict)
    variables: list[str] = field(default_factory=lambda: ["$"])
    loops: int = 0

    def nodes(self, *, depth: int, closes: tuple[str, ...], opened: int = 1) -> tuple[tuple[Node, ...], _Action | None]:
        """Read until an action whose keyword is in `closes`; return it with its keyword consumed, `else` kept."""
        if depth > MAX_DEPTH:
            raise failure(opened, f"blocks nested deeper than {MAX_DEPTH}")
        found: list[Node] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                found.append(Text(piece))
                continue
            token = piece.peek_past_space()
            keyword = token.text if token.kind == "word" and token.text in _KEYWORDS else ""
            if keyword in ("end", "else"):
                if keyword not in closes:
                    raise failure(piece.line, f"unexpected {{{{{keyword}}}}}")
                return tuple(found), piece
            if token.kind == "end":
                raise failure(piece.line, "missing value for command")
            if keyword:
                piece.take()
                found.extend(self._statement(piece, keyword, depth))
            else:
                found.append(self._pipe(piece, depth=depth))
        if closes:
            raise failure(opened, "unexpected end of the template: an {{end}} is missing")
        return tuple(found), None

    def _statement(self, action: _Action, keyword: str, depth: int) -> list[Node]:
        if keyword in ("if", "with", "range"):
            return [self._branch(action, keyword, depth)]
        if keyword in ("break", "continue"):
            if not self.loops:
                raise failure(action.line, f"{{{{{keyword}}}}} outside {{{{range}}}}")
            self._ends(action)
            return [Jump(keyword)]
        name = self._quoted_name(action, keyword)
        if keyword == "template":
            return [Call(action.line, name, self._optional_pipe(action, depth))]
        pipe = None
        if keyword == "block":
            pipe = self._pipe(action, depth=depth)
        elif depth:
            raise failure(action.line, "unexpected {{define}} inside a block")
        else:
            self._ends(action)
        outer, self.variables = self.variables, ["$"]
        loops, self.loops = self.loops, 0
        body, close = self.nodes(depth=depth + 1, closes=("end",), opened=action.line)
        assert close is not None
        close.take()
        self._ends(close)
        self.variables, self.loops = outer, loops
        self.defined[name] = body
        return [Call(action.line, name, pipe)] if keyword == "block" else []

    def _branch(self, action: _Action, keyword: str, depth: int) -> Branch:
        """Read `if`, `with` or `range`, after its keyword, up to its `end`."""
        known = len(self.variables)
        pipe = self._pipe(action, depth=depth, names=2 if keyword == "range" else 1)
        is_loop = keyword == "range"
        self.loops += is_loop
        body, close = self.nodes(depth=depth + 1, closes=("end", "else"), opened=action.line)
        self.loops -= is_loop
        assert close is not None
        otherwise: tuple[Node, ...] = ()
        if close.take().text == "else":
            if close.peek_past_space().kind != "end":
                following = close.take().text
                if following != keyword or is_loop:
                    raise failure(close.line, f"unexpected {following!r} after {{{{else}}}}")
                otherwise = (self._branch(close, keyword, depth + 1),)
                close = None
            else:
                otherwise, close = self.nodes(depth=depth + 1, closes=("end",), opened=action.line)
                assert close is not None
                close.take()
        if close is not None:
            self._ends(close)
        del self.variables[known:]
        return Branch(keyword, pipe, body, otherwise)

    def _quoted_name(self, action: _Action, keyword: str) -> str:
        action.skip_space()
        token = action.take()
        if token.kind not in ("string", "raw"):
            raise failure(action.line, f"{keyword} needs a name in quotes")
        return self._text(action.line, token)

    def _ends(self, action: _Action) -> None:
        token = action.peek_past_space()
        if token.kind != "end":
            raise failure(action.line, f"unexpected {token.text!r}")

    # ---------------------------------------------------------------------------------------------------- pipelines

    def _optional_pipe(self, action: _Action, depth: int) -> Pipe | None:
        return None if action.peek_past_space().kind == "end" else self._pipe(action, depth=depth)

    def _pipe(self, action: _Action, *, depth: int, names: int = 1, inside: bool = False) -> Pipe:
        """Read a pipeline up to the end of the action, or up to and with `)` when it is `inside` parentheses."""
        if depth > MAX_DEPTH:
            raise failure(action.line, f"parentheses nested deeper than {MAX_DEPTH}")
        declared, assigns = self._declared(action, names)
        commands: list[tuple[Operand, ...]] = []
        while True:
            command = self._command(action, depth)
            if not command:
                raise failure(action.line, "missing value for command")
            if commands and not isinstance(command[0], Function | Fields | Pipe | Variable):
                raise failure(action.line, f"non executable command in pipeline stage {len(commands) + 1}")
            commands.append(command)
            if action.takes("|"):
                continue
            if inside and not action.takes(")"):
                raise failure(action.line, "unclosed left parenthesis")
            if not inside:
                self._ends(action)
            break
        if declared and not assigns:
            self.variables.extend(declared)
        return Pipe(action.line, tuple(commands), declared, assigns)

    def _declared(self, action: _Action, most: int) -> tuple[tuple[str, ...], bool]:
        start = action.at
        names: list[str] = []
        while action.peek_past_space().kind == "variable":
            names.append(action.take().text)
            if action.takes(":="):
                return tuple(names), False
            if action.takes("="):
                for name in names:
                    self._check_variable(action.line, name)
                return tuple(names), True
            if len(names) == most or not action.takes(","):
                break
        action.at = start
        return (), False

    def _check_variable(self, line: int, name: str) -> None:
        if name not in self.variables:
            raise failure(line, f'undefined variable "{name}"')

    def _command(self, action: _Action, depth: int) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            operand = self._operand(action, depth)
            if operand is None:
                return tuple(operands)
            operands.append(operand)
            token = action.peek()
            if token.kind not in ("space", "end", "sign"):
                raise failure(action.line, f"unexpected {token.text!r}: operands are separated by spaces")

    def _operand(self, action: _Action, depth: int) -> Operand | None:
        """Read one operand with the fields that follow it; None when none comes next."""
        line = action.line
        token = action.peek_past_space()
        operand: Operand
        has_fields = True
        match token.kind:
            case "field":
                operand = Dot()
            case "dot":
                action.take()
                operand, has_fields = Dot(), False
            case "variable":
                action.take()
                self._check_variable(line, token.text)
                operand = Variable(token.text)
            case "sign" if token.text == "(":
                action.take()
                operand = self._pipe(action, depth=depth + 1, inside=True)
            case "word" if token.text in ("true", "false", "nil"):
                action.take()
                operand, has_fields = Literal({"true": True, "false": False}.get(token.text)), False
            case "word" if token.text in _KEYWORDS:
                raise failure(line, f"unexpected {token.text!r}")
            case "word":
                action.take()
                if token.text not in self.functions:
                    raise failure(line, f'function "{token.text[:80]}" not defined')
                operand = Function(token.text)
            case "string" | "raw" | "char" | "number":
                action.take()
                operand, has_fields = Literal(self._literal(line, token)), False
            case _:
                return None
        names: list[str] = []
        while action.peek().kind == "field":
            names.append(action.take().text[1:])
        if not names:
            return operand
        if not has_fields:
            raise failure(line, f"unexpected .{names[0]} after a literal")
        return Fields(operand, tuple(names))

    def _literal(self, line: int, token: _Token) -> str | int | float:
        if token.kind == "number":
            return _number(line, token.text)
        text = self._text(line, token)
        if token.kind == "char":
            if len(text) != 1:
                raise failure(line, "a character constant has one character")
            return ord(text)
        return text

    @staticmethod
    def _text(line: int, token: _Token) -> str:
        if token.kind == "raw":
            return token.text[1:-1]
        text = go_text.unquoted(token.text[1:-1])
        if text is None:
            raise failure(line, "invalid escape in quoted text")
        return text


def _number(line: int, text: str) -> int | float:
    digits = text.replace("_", "")
    if len(digits) > 40:
        raise failure(line, "the number is too long")
    body = digits.lstrip("+-")
    try:
        if re.fullmatch(r"0[0-7]+", body):
            number: int | float = int(body, 8)
        elif re.fullmatch(r"0[xXoObB].*|\d+", body):
            number = int(body, 0)
        else:
            number = float(body)
    except ValueError:
        raise failure(line, f"bad number {text!r}") from None
    if isinstance(number, int) and number >= 2**63:
        raise failure(line, f"the number {text!r} is too large")
    return -number if digits.startswith("-") else number
