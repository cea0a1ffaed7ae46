"""Go text/template: syntax, semantics, functions, and the limits of the interpreter (section 4.4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.dag.gotemplate import render
from secure_dagu.errors import DefinitionError

DATA: dict[str, Any] = {
    "name": "Ada",
    "n": 3,
    "ratio": 1.5,
    "yes": True,
    "no": False,
    "none": None,
    "empty": "",
    "list": ["a", "b", "c"],
    "nums": [1, 2, 3],
    "map": {"z": 1, "a": {"b": "deep"}},
    "people": [{"name": "x", "age": 1}, {"name": "y", "age": 2}],
}


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("plain", "plain"),
        ("{{ .name }} {{.map.a.b}} {{ $.name }}", "Ada deep Ada"),
        ("{{ .n }} {{ .ratio }} {{ .yes }} {{ .none }}", "3 1.5 true <no value>"),
        ("{{ .list }} {{ .map }}", "[a b c] map[a:map[b:deep] z:1]"),
        ("a {{- /* gone */ -}} b", "ab"),
        ("a {{/* gone\nhere */}} b", "a  b"),
        ("a  {{- .n -}}  b", "a3b"),
        ("a\n{{- 3 }}\nb", "a3\nb"),
        ("{{ -3 }}{{- 3}}", "-33"),
        ('{{ "a\\n\\x41\\u00e9\\"" }}{{ `raw\\n` }}', 'a\nAé"raw\\n'),
        ("{{ 0x10 }} {{ 1_000 }} {{ 1e3 }} {{ 'a' }} {{ 010 }} {{ .5 }}", "16 1000 1000 97 8 0.5"),
        ('{{ "}}" }}', "}}"),
        ("{{ $x := .n }}{{ $x }}{{ $x = 4 }}{{ $x }}", "34"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $m := .map }}{{ $m.a.b }}", "deep"),
        ("{{ if .yes }}t{{ else }}f{{ end }}{{ if .empty }}t{{ else }}f{{ end }}", "tf"),
        ("{{ if .no }}1{{ else if eq .n 3 }}2{{ else }}3{{ end }}", "2"),
        ("{{ if $x := .name }}{{ $x }}{{ end }}", "Ada"),
        ("{{ with .map.a }}{{ .b }}{{ $.n }}{{ end }}", "deep3"),
        ("{{ with .empty }}x{{ else }}none{{ end }}", "none"),
        ("{{ with .empty }}x{{ else with .name }}{{ . }}{{ else }}z{{ end }}", "Ada"),
        ("{{ range .list }}<{{ . }}>{{ end }}", "<a><b><c>"),
        ("{{ range $i, $v := .list }}{{ if $i }}, {{ end }}{{ $i }}={{ $v }}{{ end }}", "0=a, 1=b, 2=c"),
        ("{{ range $v := .list }}{{ $v }}{{ end }}", "abc"),
        ("{{ range $k, $v := .map }}{{ $k }};{{ end }}", "a;z;"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ('{{ range .empty | split "," }}[{{ . }}]{{ end }}', "[]"),
        ("{{ range .none }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range .nums }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ . }}{{ end }}", "13"),
        ("{{ range .nums }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}", "1"),
        ("{{ $s := 0 }}{{ range .nums }}{{ $s = add . $s }}{{ end }}{{ $s }}", "6"),
        ('{{ define "t" }}<{{ . }}>{{ end }}{{ template "t" .name }}{{ template "t" }}', "<Ada><<no value>>"),
        ('{{ block "b" .map.a }}{{ .b }}{{ end }}', "deep"),
        ('{{ define "t" }}{{ $.n }}{{ end }}{{ range .list }}{{ template "t" $ }}{{ end }}', "333"),
        ('{{ .name | printf "%s-%d" | upper }}', "ADA-%!D(MISSING)"),
        ('{{ .list | join "," | upper | printf "%q" }}', '"A,B,C"'),
        ("{{ (index .people 1).name }} {{ (len .list) }}", "y 3"),
        ('{{ index .map "a" "b" }} {{ index .list 0 }} {{ index .map "zz" }}', "deep a <no value>"),
        ('{{ slice .list 1 2 }} {{ slice "hello" 1 3 }}', "[b] el"),
        (
            "{{ eq .n 1 2 3 }} {{ ne .n 3 }} {{ lt 1 2 }} {{ le 2 2 }} {{ gt 1 2 }} {{ ge 2 2 }}",
            "true false true true false true",
        ),
        (
            '{{ and .yes .name }} {{ and .no (fail "x") }} {{ or .empty .n }} {{ or .yes (fail "x") }} {{ not .no }}',
            "Ada false 3 true true",
        ),
        ('{{ print 1 2 }}|{{ print "a" 1 }}|{{ println 1 "a" }}', "1 2|a1|1 a\n"),
        (
            '{{ html "<a&\\">" }} {{ js "it\'s <b>" }} {{ urlquery "a b&c" }}',
            "&lt;a&amp;&#34;&gt; it\\'s \\u003Cb\\u003E a+b%26c",
        ),
        ("{{ true }} {{ false }}", "true false"),
        ("{{ .name\n}}", "Ada"),
    ],
)
def test_a_template_renders_as_go_does(template: str, result: str) -> None:
    assert render(template, DATA) == result


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ('{{ "a,b" | split "," | join "-" }}', "a-b"),
        ("{{ count .list }} {{ .list | count }} {{ count .map }}", "3 3 2"),
        ("{{ add 1 2 }} {{ .n | add 4 }} {{ sub 5 2 }} {{ mul 2 3 }} {{ div -7 2 }} {{ mod 7 3 }}", "3 7 3 6 -3 1"),
        ("{{ empty .empty }} {{ empty .name }}", "true false"),
        ('{{ upper .name }} {{ lower .name }} {{ trim "  x " }}', "ADA ada x"),
        ('{{ default "d" .empty }} {{ .name | default "d" }} {{ .empty | default "d" }}', "d Ada d"),
        (
            '{{ title "hello world" }} {{ repeat 2 "ab" }} {{ substr 1 3 "hello" }} {{ trunc -2 "hello" }}',
            "Hello World abab el lo",
        ),
        ('{{ contains "b" "abc" }} {{ hasPrefix "a" "abc" }} {{ hasSuffix "a" "abc" }}', "true true false"),
        ('{{ quote .name 1 }} {{ squote .name }} {{ cat 1 "b" }}', '"Ada" "1" \'Ada\' 1 b'),
        ('{{ "a\\nb" | indent 2 }}|{{ "x" | nindent 1 }}', "  a\n  b|\n x"),
        (
            '{{ "a-b" | replace "-" "+" }} {{ trimPrefix "a" "ab" }} {{ trimSuffix "b" "ab" }} {{ trimAll "$" "$5$" }}',
            "a+b b a 5",
        ),
        (
            '{{ snakecase "FirstName" }} {{ camelcase "http_server" }} {{ kebabcase "FirstName" }}',
            "first_name HttpServer first-name",
        ),
        ('{{ abbrev 8 "hello world" }} {{ initials "First Try" }} {{ plural "one" "many" 2 }}', "hello... FT many"),
        ('{{ wrap 5 "one two three" }}', "one\ntwo\nthree"),
        (
            '{{ regexMatch "^a+$" "aa" }} {{ regexFind "[0-9]+" "a12" }}',
            "true 12",
        ),
        (
            '{{ regexFindAll "[2,4]" "1234" -1 }} {{ regexSplit "z+" "pizza" -1 }}',
            "[2 4] [pi a]",
        ),
        (
            "{{ max 1 3 2 }} {{ min 1 3 }} {{ ceil 1.2 }} {{ floor 1.8 }} {{ round 1.255 2 }} {{ divf 1 4 }}",
            "3 1 2 1 1.25 0.25",
        ),
        (
            '{{ until 3 }} {{ untilStep 2 8 3 }} {{ seq 1 3 }} {{ atoi "12" }} {{ int "7" }} {{ float64 "1.5" }}',
            "[0 1 2] [2 5] 1 2 3 12 7 1.5",
        ),
        ("{{ append (list 1 2) 3 }} {{ prepend (list 2) 1 }} {{ concat (list 1) (list 2) }}", "[1 2 3] [1 2] [1 2]"),
        (
            "{{ first .list }} {{ last .list }} {{ rest .list }} {{ initial .list }} {{ reverse .list }}",
            "a c [b c] [a b] [c b a]",
        ),
        (
            '{{ uniq (list 1 1 2) }} {{ without .nums 2 }} {{ has 2 .nums }} {{ compact (list 0 1 "") }}',
            "[1 2] [1 3] true [1]",
        ),
        ('{{ sortAlpha (list "b" "a") }} {{ toStrings .nums }}', "[a b] [1 2 3]"),
        (
            '{{ $d := dict "a" 1 }}{{ $_ := set $d "b" 2 }}{{ $d }} {{ hasKey $d "a" }} {{ get $d "zz" }}',
            "map[a:1 b:2] true ",
        ),
        (
            '{{ dig "a" "b" "no" .map }} {{ dig "a" "q" "no" .map }} {{ pick .map "z" }} {{ omit .map "a" }}',
            "deep no map[z:1] map[z:1]",
        ),
        (
            '{{ merge (dict "a" 1) (dict "a" 2 "b" 3) }} {{ mergeOverwrite (dict "a" 1) (dict "a" 2) }}',
            "map[a:1 b:3] map[a:2]",
        ),
        ('{{ toJson .map }} {{ toJson "<" }} {{ toRawJson "<" }}', '{"a":{"b":"deep"},"z":1} "\\u003c" "<"'),
        ("{{ toPrettyJson .nums }}", "[\n  1,\n  2,\n  3\n]"),
        ('{{ (fromJson "{\\"a\\": 1000000}").a }} {{ (fromJson "[1]") }}', "1e+06 [1]"),
        (
            '{{ b64enc "hi" }} {{ b64dec "aGk=" }} {{ b32enc "hi" }} {{ sha256sum "" | trunc 8 }}',
            "aGk= hi NBUQ==== e3b0c442",
        ),
        (
            '{{ base "/a/b.txt" }} {{ dir "/a/b.txt" }} {{ ext "/a/b.txt" }} {{ clean "a//b/../c" }} {{ isAbs "/a" }}',
            "b.txt /a .txt a/c true",
        ),
        (
            '{{ coalesce "" 0 "x" }} {{ ternary "y" "n" .yes }} {{ kindOf .list }} {{ typeOf .n }}',
            "x y slice int",
        ),
        (
            '{{ printf "%5d|%-5s|%05d|%.2f|%x|%v|%t|%%|%c|%+d|%T" 42 "ab" 42 1.005 255 .list true 65 1 1.5 }}',
            "   42|ab   |00042|1.00|ff|[a b c]|true|%|A|+1|float64",
        ),
        (
            '{{ printf "%d" "x" }} {{ printf "%s" 1 }} {{ printf "a" 1 }} {{ printf "%#v" .list }}',
            '%!d(string=x) %!s(int=1) a%!(EXTRA int=1) []interface {}{"a", "b", "c"}',
        ),
        (
            '{{ mustToJson 1 }} {{ (urlParse "http://h:1/p?q#f").host }} {{ swapcase "aB" }} {{ nospace "a b" }}',
            "1 h:1 Ab ab",
        ),
        ('{{ regexReplaceAll "a(x*)b" "-axxb-" "${1}W" }}', "-xxW-"),
        ('{{ regexReplaceAllLiteral "a" "ba" "$1" }}', "b$1"),
        ("{{ chunk 2 .nums }}", "[[1 2] [3]]"),
        ('{{ $d := dict "a" 1 "b" 2 }}{{ keys $d }} {{ values $d }}', "[a b] [1 2]"),
        ('{{ sha1sum "" | trunc 4 }}', "da39"),
        ("{{ deepEqual .nums (list 1 2 3) }}", "true"),
    ],
)
def test_functions_do_what_their_go_originals_do(template: str, result: str) -> None:
    assert render(template, DATA) == result


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("\n{{ .missing }}", 'line 2: map has no entry for key "missing"'),
        ("{{ if .missing }}{{ end }}", 'map has no entry for key "missing"'),
        ("{{ .name.x }}", "can't evaluate field x in type string"),
        ("{{ .none.x }}", 'nil data; no entry for key "x"'),
        ("{{ nosuch 1 }}", 'function "nosuch" not defined'),
        ('{{ env "HOME" }}', 'function "env" not defined'),
        ("{{ now }}", 'function "now" not defined'),
        ("{{ $x }}", 'undefined variable "$x"'),
        ("{{ if .yes }}", "unexpected end of the template"),
        ("{{ end }}", "unexpected {{end}}"),
        ("{{ else }}", "unexpected {{else}}"),
        ("\n\n{{ .a", "line 3: unclosed action"),
        ('{{ "a }}', "unterminated quoted text"),
        ("{{ }}", "missing value for command"),
        ("{{ .name 1 }}", "can't give argument to non-function .name"),
        ("{{ 1 | 2 }}", "non executable command in pipeline stage 2"),
        ("{{ (1 }}", "unclosed left parenthesis"),
        ("{{ upper }}", "wrong number of args for upper: want 1 got 0"),
        ("{{ upper 1 }}", "expected string; got int"),
        ('{{ eq 1 "a" }}', "incompatible types for comparison"),
        ("{{ index .list 9 }}", "index out of range: 9"),
        ("{{ div 1 0 }}", "integer divide by zero"),
        ('{{ fail "no good" }}', "no good"),
        ('{{ template "zz" }}', 'template "zz" not defined'),
        ("{{ break }}", "{{break}} outside {{range}}"),
        ("{{ range .yes }}{{ end }}", "range can't iterate over true"),
        ('{{ regexMatch "(?=a)" "a" }}', "look-around"),
        ('{{ regexMatch "(" "a" }}', "error parsing regexp"),
        ("{{ .a! }}", "unexpected '!' in an action"),
        ("{{ 08 }}", "bad number"),
    ],
)
def test_an_error_names_its_line(template: str, why: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        render(template, DATA)
    assert why in caught.value.why
    assert caught.value.why.startswith("line ")


@pytest.mark.parametrize(
    "template",
    [
        '{{ define "t" }}{{ template "t" . }}{{ end }}{{ template "t" . }}',
        "{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}",
        "{{ range 1000000000 }}x{{ end }}",
        "{{ until 1000000000 }}",
        '{{ repeat 1000000000 "x" }}',
        '{{ $s := "xxxxxxxxxx" }}{{ range 60 }}{{ $s = print $s $s }}{{ end }}{{ $s }}',
        '{{ $l := list 1 }}{{ range 60 }}{{ $l = list $l $l }}{{ end }}{{ $l }}',
        '{{ $l := list 1 }}{{ range 60 }}{{ $l = concat $l $l }}{{ end }}',
        '{{ $d := dict }}{{ $_ := set $d "d" $d }}{{ $d }}',
        '{{ $d := dict }}{{ $_ := set $d "d" $d }}{{ toJson $d }}',
        '{{ $d := dict }}{{ $_ := set $d "d" $d }}{{ deepEqual $d (deepCopy $d) }}',
        '{{ printf "%1000000d" 1 }}',
        "{{ " + "(" * 200 + "1" + ")" * 200 + " }}",
        "{{ if true }}" * 200,
        '{{ $s := repeat 1000000 "x" }}{{ range 1000 }}{{ $s }}{{ end }}',
        '{{ $s := repeat 1000000 "x" }}{{ replace "" $s $s }}',
        "{{ $x := 1 }}{{ range 100000000 }}{{ $x = mul $x 3 }}{{ end }}",
    ],
)  # fmt: skip
def test_a_template_without_measure_is_refused(template: str) -> None:
    with pytest.raises(DefinitionError):
        render(template, {})


def test_more_functions_may_be_handed_in() -> None:
    assert render("{{ json .a }}", {"a": 1}, {"json": lambda value: f"<{value}>"}) == "<1>"


def test_the_data_is_not_changed() -> None:
    data = {"m": {"a": 1}}
    assert render('{{ $_ := set .m "b" 2 }}{{ .m }}', data) == "map[a:1 b:2]"
    assert data == {"m": {"a": 1}}


_source = st.text(alphabet="{}-.$|()\"`' \nabx1:=,/*%", max_size=40)
_pieces = st.lists(
    st.sampled_from(["{{", "}}", "{{-", "-}}", " ", ".a", "$x", ":=", "if", "range", "end", "else", "(", ")", "|", "1",
                     '"s"', "list", "index", "with", "printf", "eq", "\n", "define", "template", "set", "dict"]),
    max_size=14,
).map(" ".join)  # fmt: skip


@given(source=_source | _pieces)
def test_any_text_renders_or_is_refused_with_a_line(source: str) -> None:
    error: DefinitionError | None = None
    try:
        render(source, {"a": [1, {"b": None}]})
    except DefinitionError as caught:
        error = caught
    assert error is None or error.why.startswith("line ")


@given(text=st.text(max_size=30).filter(lambda text: "{{" not in text))
def test_text_without_actions_is_kept_as_it_is(text: str) -> None:
    assert render(text, {}) == text


@given(value=st.text(max_size=30))
def test_an_inserted_value_is_not_a_template(value: str) -> None:
    assert render("{{ .v }}", {"v": "{{ .v }}" + value}) == "{{ .v }}" + value
