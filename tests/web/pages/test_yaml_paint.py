"""YAML in colours: the pieces are the text, whatever the text is."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.web.pages.yaml_paint import painted, plain

_YAML = st.text(alphabet=st.sampled_from("ab1 -:#'\"{}[],|>$\n\\_."), max_size=200)


@given(st.one_of(_YAML, st.text(max_size=100)))
def test_the_pieces_are_the_text(text: str) -> None:
    assert plain(painted(text)) in (text, text.removesuffix("\n"))


def test_what_is_what() -> None:
    line = '  - {id: a, run: "echo ${X}", n: 3} # why'
    assert painted(line) == [
        [
            ("", "  - "), ("mark", "{"), ("key", "id:"), ("", " a"), ("mark", ","), ("key", " run:"), ("", " "),
            ("text", '"echo ${X}"'), ("mark", ","), ("key", " n:"), ("", " "), ("value", "3"), ("mark", "}"), ("", " "),
            ("note", "# why"),
        ]
    ]  # fmt: skip
    assert painted("steps:\n  - run: echo $HOME") == [
        [("key", "steps:")], [("", "  - "), ("key", "run:"), ("", " echo "), ("ref", "$HOME")],
    ]  # fmt: skip


def test_a_line_that_ends_never_and_a_text_that_is_too_long_cost_little() -> None:
    begin = time.monotonic()
    for hostile in ("a: " + '"\\' * 500_000, "- " * 400_000, "'" * 1_000_000, "{" * 150_000, "a b " * 200_000 + ":"):
        assert plain(painted(hostile)) == hostile
        assert plain(painted(hostile[:1990] + "\n" + hostile[:1990])) == hostile[:1990] + "\n" + hostile[:1990]
    assert time.monotonic() - begin < 10  # measured: 0.1 s
