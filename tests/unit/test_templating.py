"""Templates: what they render, what is refused when they are made, and that none of them can do harm."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.channels import CHANNELS
from tidings.errors import Invalid, RenderError
from tidings.model.words import Channel
from tidings.templating import CompiledTemplate, compile_template
from tidings.templating.language import FILTERS, TESTS

RULES = CHANNELS
ADA = {"id": "u-1", "locale": "de-AT", "time_zone": "Europe/Vienna", "attributes": {"plan": "gold"}}


def compile_text(source: str) -> CompiledTemplate:
    return compile_template({"channels": {"sms": {"en": {"text": source}}}}, RULES)


def compile_html(source: str) -> CompiledTemplate:
    return compile_template({"channels": {"email": {"en": {"subject": "s", "html": source}}}}, RULES)


def compile_json(source: str) -> CompiledTemplate:
    return compile_template({"channels": {"webhook": {"en": {"body": source}}}}, RULES)


def render_text(source: str, **data: Any) -> str:
    return compile_text(source).render(Channel.sms, None, {"user": ADA, **data})["text"]


def refused(content: dict[str, Any]) -> dict[str | None, str]:
    with pytest.raises(Invalid) as caught:
        compile_template(content, RULES)
    return {e.pointer: e.detail for e in caught.value.errors}


# ---------------------------------------------------------------- what they render


def test_every_field_of_the_chosen_locale_is_rendered() -> None:
    template = compile_template(
        {
            "default_locale": "en",
            "channels": {
                "email": {
                    "en": {
                        "subject": "Order {{ order.id }}",
                        "text": "Hi {{ user.id }}",
                        "html": "<b>{{ order.id }}</b>",
                    },
                    "de": {"subject": "Bestellung {{ order.id }}", "text": "Hallo {{ user.id }}"},
                }
            },
        },
        RULES,
    )
    data = {"user": ADA, "order": {"id": "A<1>"}}
    assert template.render(Channel.email, "en-GB", data) == {
        "subject": "Order A<1>",
        "text": "Hi u-1",
        "html": "<b>A&lt;1&gt;</b>",
    }
    assert template.render(Channel.email, "de-AT", data)["subject"] == "Bestellung A<1>"
    assert template.render(Channel.email, "fr", data)["subject"] == "Order A<1>"
    assert template.resolve_locale(Channel.email, "de-AT") == "de-AT"
    assert template.resolve_locale(Channel.email, "fr") == "en"
    assert template.resolve_locale(Channel.email, None) == "en"
    assert template.channels == {Channel.email}
    with pytest.raises(RenderError, match="no content for sms"):
        template.render(Channel.sms, "en", data)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ when|date('long') }}", "22. November 2026"),
        ("{{ when|datetime }}", "22.11.2026, 19:30:00"),
        ("{{ when|time }}", "19:30"),
        ("{{ '2026-11-22'|date('short') }}", "22.11.26"),
        ("{{ when|date('yyyy-MM-dd') }}", "2026-11-22"),
        ("{{ 1234.5|money('EUR') }}", "€\xa01.234,50"),
        ("{{ '1234567.891'|number }}", "1.234.567,891"),
        ("{{ 1|number(2) }}", "1,00"),
        ("{{ 0.254|percent(1) }}", "25,4\xa0%"),
        ("{{ '%.2f and %s'|format(1, 'x') }}", "1.00 and x"),
        ("{{ ['a', 'b']|join(', ') }}", "a, b"),
        ("{{ items|map(attribute='n')|join('+') }}", "1+2"),
        ("{{ items|join('+', attribute='n') }}", "1+2"),
        ("{{ 'a-b'|replace('-', '+') }}", "a+b"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ 3|times(4) }}", "12"),
        ("{{ 'the quick brown fox'|truncate(12) }}", "the quick…"),
        ("{{ items|tojson }}", '[{"n":1},{"n":2}]'),
        ("{% for i in items if i.n > 1 %}{{ loop.index }}:{{ i.n }}{% endfor %}", "1:2"),
        ("{% for i in items -%}\n  {{ i.n }}\n{%- endfor %}", "12"),
        ("{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}", "012"),
        ("{% set full = user.id ~ '!' %}{{ full|upper }}", "U-1!"),
        ("{% set x %}{{ user.id }}{% endset %}{{ x }}", "u-1"),
        ("{% if user.id == 'u-1' and items|length > 1 %}y{% elif nope is defined %}m{% else %}n{% endif %}", "y"),
        ("{{ nope|default('-') }}{# a comment with }} in it #}{{ '}}' }}", "-}}"),
        ("{{ 'yes' if items else 'no' }}", "yes"),
        ("{{ user.attributes.plan is defined }}", "True"),
        ("{{ [1, 2, 3][0] + 1 }}", "2"),
    ],
)  # fmt: skip
def test_expressions(source: str, text: str) -> None:
    template = compile_template({"default_locale": "de", "channels": {"sms": {"de": {"text": source}}}}, RULES)
    data = {"user": ADA, "when": "2026-11-22T18:30:00Z", "items": [{"n": 1}, {"n": 2}]}
    assert template.render(Channel.sms, "de-AT", data)["text"] == text


def test_data_whose_names_are_methods_of_python_are_found() -> None:
    assert render_text("{% for i in order.items %}{{ i }}{% endfor %}", order={"items": [1, 2]}) == "12"


@pytest.mark.parametrize("source", ["{{ o.pop }}", "{{ o.pop|default('x') }}", "{% for i in o.items %}{% endfor %}"])
def test_names_that_only_python_knows_are_not_in_the_data(source: str) -> None:
    with pytest.raises(RenderError):
        render_text(source, o={})


def test_rendering_does_not_change_the_data() -> None:
    for source in ("{{ l.append(1) }}", "{{ d.clear() }}", "{% if d.pop('a') %}{% endif %}"):
        with pytest.raises(Invalid):
            compile_text(source)


def test_errors_name_the_field_and_the_line_and_no_value() -> None:
    with pytest.raises(RenderError) as caught:
        render_text("one\n{{ order.nope }}", order={"secret": "hush"})
    assert str(caught.value).startswith("sms/en/text, line 2: undefined value")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "required"),
    [
        ("{{ a }} {{ b.c.d }}", {"a", "b.c.d"}),
        ("{{ a|default('x') }}", set()),
        ("{{ a|default('x') }}{{ a }}", {"a"}),
        ("{{ a.b|default('x') }}", {"a"}),
        ("{% if a is defined %}{{ a.b }}{% endif %}", set()),
        ("{% if a is not defined %}x{% else %}{{ a }}{% endif %}", set()),
        ("{% for x in xs %}{{ x.n }}{{ loop.index }}{% endfor %}", {"xs"}),
        ("{% set y = z %}{{ y }}", {"z"}),
        ("{{ user.id }}{{ notification.id }}{{ range(3) }}", set()),
        ("{{ a|default(b) }}", {"b"}),
    ],
)
def test_required_names(source: str, required: set[str]) -> None:
    assert compile_text(source).required == required


def test_missing_names() -> None:
    template = compile_text("{{ a }} {{ b.c }} {{ l[0] }}")
    assert template.missing({}) == ["a", "b.c", "l"]
    assert template.missing({"a": None, "b": {"c": 0}, "l": []}) == []
    assert template.missing({"a": 1, "b": {}, "l": [1]}) == ["b.c"]


# ---------------------------------------------------------------- what is refused


def test_content_is_refused_with_a_pointer_for_each_thing_to_mend() -> None:
    assert set(
        refused(
            {
                "default_locale": "xx-nope",
                "extra": 1,
                "channels": {
                    "pigeon/1": {},
                    "push": {},
                    "sms": {"de": {"text": "x"}},
                    "email": {
                        "en": {"subject": "{{ a", "text": "{% if %}", "colour": "x", "html": 3},
                        "de": {"subject": "only"},
                        "!!": {},
                        "fr": "x",
                    },
                },
            }
        )
    ) == {
        "/default_locale",
        "/extra",
        "/channels/pigeon~11",
        "/channels/push",
        "/channels/sms",
        "/channels/email/en/subject",
        "/channels/email/en/text",
        "/channels/email/en/colour",
        "/channels/email/en/html",
        "/channels/email/de",
        "/channels/email/!!",
        "/channels/email/fr",
    }
    assert set(refused({})) == {"/channels"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a\n{{ x.", "line 2: {{ is not closed"),
        ("{{ }}", "line 1: the tag is empty"),
        ("{# a", "line 1: the comment"),
        ("{{ x %}", "wrong mark"),
        ("\n\n{% if x %}", "line 3: {% if %} is not closed"),
        ("{% endif %}", "closes nothing"),
        ("{% else %}", "outside of an if"),
        ("{{ x + }}", "line 1: syntax error"),
        ("{{ x|safe }}", "values are always escaped"),
        ("{{ x|nope }}", "there is no filter 'nope'"),
        ("{{ x is nope }}", "there is no test 'nope'"),
        ("{{ x * 3 }}", "use the filter: {{ price|times(quantity) }}"),
        ("{{ 2 ** 3 }}", "powers"),
        ("{{ {'a': 1} }}", "literal objects"),
        ("{{ f(1) }}", "f(…) cannot be called"),
        ("{{ 'x'.upper() }}", "cannot be called"),
        ("{{ x[0](1) }}", "only range"),
        ("{{ _tick(1) }}", "reserved"),
        ("{{ x.__class__ }}", "reserved"),
        ("{% macro m() %}{% endmacro %}", "macros are not supported"),
        ("{% include 'x' %}", "templates stand alone"),
        ("{% raw %}{% endraw %}", "print braces as a string"),
        ("{% with a = 1 %}{% endwith %}", "use {% set %}"),
        ("{% set ns.x = 1 %}", "plain name"),
        ("{% for x in y recursive %}{% endfor %}", "recursive"),
        ("{% for x in y %}{{ loop(x) }}{% endfor %}", "recursive"),
        ("{% for x %}{% endfor %}", "write {% for item in items %}"),
        ("{{ debug() }}", "cannot be called"),
        ("{{ user.shoe_size }}", "there is no user.shoe_size"),
        ("\0", "NUL"),
        ("\ud800", "not valid Unicode"),
        ("{{ a" + "|upper" * 40 + " }}", "more than 16 filters"),
        ("{{ a" + " ~ a" * 40 + " }}", "more than 16 of ~ and +"),
        ("{{ " + "not " * 300 + "1 }}", "more than 200 words"),
        ("{% if 1 %}" * 40 + "{% endif %}" * 40, "nested more than 32 deep"),
        ("{% if 1 %}" + "{% elif 1 %}" * 70 + "{% endif %}", "more than 64 branches"),
        ("x" * 300_000, "longer than"),
    ],
)  # fmt: skip
def test_a_source_is_refused_by_name(source: str, says: str) -> None:
    told = refused({"channels": {"sms": {"en": {"text": source}}}})
    assert says in told["/channels/sms/en/text"]


@pytest.mark.parametrize(
    "source",
    ['{"a": "Order {{ id }}"}', '{"a": "{% if x %}b{% endif %}"}', '{"a": {% set x %}{{ id }}{% endset %}{{ x }}}'],
)
def test_json_fields_refuse_values_inside_of_strings(source: str) -> None:
    with pytest.raises(Invalid):
        compile_json(source)


# ---------------------------------------------------------------- no template does harm

BOMBS = {
    "repeat": '{{ "x"|join("x") }}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}',
    "width": '{{ "%1000000000d"|format(1) }}',
    "precision": '{{ "%.1000000000f"|format(1) }}',
    "star": '{{ "%*d"|format(1000000000, 1) }}',
    "doubling": "{% set a = big %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "doubling by adding": "{% set a = big %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
    "doubling lists": "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a|length }}",
    "doubling in lists": "{% set a = [big] %}" + "{% set a = [a[0] ~ a[0]] %}" * 60 + "{{ a|length }}",
    "doubling by capture": "{% set a = big %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "doubling by loops": "".join(f"{{% for x{i + 1} in [x{i} ~ x{i}] %}}" for i in range(20)).replace("x0", "big")
    + "x" + "{% endfor %}" * 20,
    "printing": "{{ big }}" * 20_000,
    "printing nothing": "{{ '' }}" * 30_000,
    "literal in loops": "{% for i in range(9999) %}" + "x" * 200_000 + "{% endfor %}",
    "concatenation in one tag": "{{ big" + " ~ big" * 16 + " }}",
    "join": "{{ range(10000)|join(big) }}",
    "replace": '{{ big|replace("x", big) }}',
    "replace nothing": '{{ big|replace("", big) }}',
    "indent": '{{ "a"|indent(1000000000) }}',
    "indent lines": '{{ lines|indent(100) }}',
    "range": "{{ range(1000000000) }}",
    "range step": "{{ range(0, 1000000000000000000000, 1) }}",
    "loop over text": "{% for i in big %}{% for j in big %}{{ i }}{% endfor %}{% endfor %}",
    "sorting": "{% if 1 in (many" + "|sort|reverse" * 7 + ") %}{% endif %}" * 1000,
    "sorting and printing": ("{{ (many" + "|sort|reverse" * 6 + ")|length }}") * 1000,
    "sorting in loops": "{% for i in range(10000) %}{% set x = many|sort|reverse|list %}{% endfor %}",
    "searching in loops": "{% for i in range(9999) %}{% for j in range(9999) if 'q' in many %}{% endfor %}{% endfor %}",
    "select": "{{ range(10000)|select('in', many)|list|length }}",
    "searching": "{% if 'q' in many %}{% endif %}" * 9_000,
    "comparing": "{% if many == more %}{% endif %}" * 9_000,
    "deep lists": "{% set l = [1] %}" + "{% set l = [l] %}" * 5_000 + "{{ l }}{{ l|tojson }}",
    "deep lists, measured": "{% set l = [1] %}" + "{% set l = [l]|list %}" * 5_000 + "{{ l|string }}",
    "deep data": "{{ deep }}{{ deep|tojson }}{{ deep|string }}{{ deep == deep }}{{ [deep]|sort }}",
    "long chain": "{{ a" + ".b" * 90 + " }}",
    "huge number": "{{ ('9' ~ big)|int }}{{ big|float }}",
    "money": "{{ '1e999999999'|money('EUR') }}",
    "number": "{{ '1e999999999'|number(20) }}",
    "date": "{{ 1e300|date }}{{ '9999-99-99'|date }}",
    "date pattern": "{{ 0|date('" + "y" * 1000 + "') }}",
    "times": "{{ 'x'|times(1000000000) }}",
    "groupby": "{{ many|groupby('x')|length }}",
    "urlencode": "{{ big|urlencode|urlencode|urlencode|urlencode|urlencode|urlencode|urlencode|urlencode|length }}",
    "splitting": "{{ (big ~ big)|split('')|join('xx')|list|length }}",
    "division": "{{ 1 // 0 }}{{ 1 % 0 }}",
    "surrogate": "{{ half }}",
    "truncate": "{{ 'x'|truncate(-1) }}",
}  # fmt: skip


def run_bomb(name: str) -> tuple[float, float]:
    """Seconds of the processor and megabytes that one bomb takes; it may end in text, in an error or be refused."""
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    data = {"big": "x" * 64_000, "many": [str(i) for i in range(20_000)], "lines": "\n" * 60_000, "deep": deep}
    data["more"] = list(data["many"])
    try:
        template = compile_text(BOMBS[name])
    except Invalid:
        return 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with contextlib.suppress(RenderError):
        template.render(Channel.sms, "en", {"user": ADA, "half": "\ud800", **data})
    took = time.process_time() - started
    return took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def run_all_bombs() -> None:
    """Print what each bomb took and how it ended. Each runs in a fork of its own, for its peak of memory."""
    for name in BOMBS:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(run_bomb(name)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            told = answer.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"name": name, "status": status, "told": told}), flush=True)


@pytest.fixture(scope="module")
def bombs() -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=100, check=True)
    return {result["name"]: result for result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_every_template_ends_soon_and_small(name: str, bombs: dict[str, dict[str, Any]]) -> None:
    assert bombs[name]["status"] == 0
    seconds, megabytes = json.loads(bombs[name]["told"])
    assert seconds < 1
    assert megabytes < 50


_PIECES = """
{{ }} {% %} {{- -}} {%- -%} {# #} a b.c user.id big if else elif endif for endfor in set endset = ~ + - | ( ) [ ] , .
is not defined default upper join replace sort list length map attribute range loop loop.index 'x' "y" 1 2.5 : == and or
true none raw macro _tick _bounded |_bounded safe tojson format date money '%9d' {{a}} {%if
"""
PIECES = st.sampled_from(_PIECES.split())
EXPRESSIONS = st.recursive(
    st.sampled_from(
        ("a", "b", "b.c", "big", "nope", "user", "deep", "'x'", "''", "1", "-2", "0.5", "true", "none", "[]")
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from((*FILTERS, "join(big)", "map(attribute='c')", "times(3)"))).map("|".join),
        st.tuples(
            inner, st.sampled_from((" ~ ", " + ", " - ", " / ", " // ", " % ", " in ", " == ", " < ", " and ")), inner
        ).map(lambda parts: "(" + "".join(parts) + ")"),
        st.tuples(inner, st.sampled_from(sorted(TESTS))).map(" is ".join),
        st.tuples(inner, inner).map(lambda p: f"[{p[0]}, {p[1]}]"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]})[{p[1]}]"),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}|replace({p[1]}, big)|format({p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}|default({p[1]}, true)"),
    ),
    max_leaves=8,
)
TEMPLATES = st.recursive(
    EXPRESSIONS.map("{{{{ {} }}}}".format) | st.just("text "),
    lambda inner: st.one_of(
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% set a = {p[0]} %}}{p[1]}"),
        st.tuples(inner, inner).map(lambda p: f"{{% set b %}}{p[0]}{{% endset %}}{p[1]}"),
        st.tuples(EXPRESSIONS, inner, inner).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% else %}}{p[2]}{{% endif %}}"),
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% for a in {p[0]} %}}{p[1]}{{% endfor %}}"),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(TEMPLATES | st.lists(PIECES, max_size=40).map(" ".join) | st.text(max_size=60))
def test_arbitrary_templates_never_crash(source: str) -> None:
    try:
        template = compile_text(source)
    except Invalid:
        return
    data = {"a": [1, "<", {"c": 2}], "b": {"c": "%s"}, "big": "x" * 1000, "deep": [[[{"c": [1.5, None]}]]]}
    started = time.monotonic()
    with contextlib.suppress(RenderError):
        template.render(Channel.sms, "en", {"user": ADA, **data})
    assert time.monotonic() - started < 2


class Elements(html.parser.HTMLParser):
    """Notes every element and attribute of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


HOSTILE = st.text(alphabet=st.sampled_from("<>\"'&;/=a! \r\n-x\\u{}%[]"), max_size=40)
HTML = compile_html(
    '<a title="{{ v }}" href=\'{{ v }}\'>{{ v|upper }}{{ v|replace("a", v) }}{{ v ~ v }}{{ [v, v]|join(v) }}{{ l }}'
    "{% set x %}{{ v }}{% endset %}{{ x }}{{ x|replace('&lt;', '<') }}{{ x|lower }}{{ x ~ v }}{{ v|tojson }}"
    "{{ v|truncate(5) }}{{ x|reverse }}{{ x|string }}{{ '%s'|format(v) }}{{ '%s'|format(x) }}{{ v|default('x') }}"
    "{{ v|first|default('') }}</a>"
)
JSON = compile_json(
    '{"a": {{ v }}, "b": {{ "x" ~ v }}, "c": {{ l }}, "d": {{ v|tojson }}, "e": {{ v|replace("a", v) }},'
    ' "f": {{ [v, v]|join(v) }}, "g": [{% for x in l %}{{ x }}, {% endfor %}0], "h": {{ v|reverse }}}'
)


@settings(max_examples=200, deadline=None)
@given(HOSTILE)
def test_no_value_injects_an_element_or_an_attribute(value: str) -> None:
    page = Elements()
    page.feed(HTML.render(Channel.email, "en", {"user": ADA, "v": value, "l": [value]})["html"])
    page.close()
    assert page.found == [("a", ["title", "href"])]


@settings(max_examples=200, deadline=None)
@given(HOSTILE | st.text(max_size=20))
def test_no_value_breaks_a_json_document(value: str) -> None:
    document = json.loads(JSON.render(Channel.webhook, "en", {"user": ADA, "v": value, "l": [value, value]})["body"])
    assert list(document) == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert (document["a"], document["c"]) == (value, [value, value])


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_no_value_injects_a_mail_header(value: str) -> None:
    template = compile_template({"channels": {"email": {"en": {"subject": "Hi {{ v }}", "text": "x"}}}}, RULES)
    parts = template.render(Channel.email, "en", {"v": value})
    try:
        content = RULES[Channel.email].to_content(parts)
    except RenderError:
        assert any(char in value for char in "\r\n")
    else:
        assert "\n" not in content.subject  # type: ignore[union-attr]  # an e-mail's content has one
        assert "\r" not in content.subject  # type: ignore[union-attr]  # as above


def test_one_rendering_does_not_pay_for_another() -> None:
    template = compile_text("{{ big }}" * 7)
    for _ in range(20):
        assert len(template.render(Channel.sms, "en", {"big": "x" * 64_000})["text"]) == 448_000


if __name__ == "__main__":
    run_all_bombs()
