import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import RequestError
from noria.transform.template import Template, render, variables_of


def test_the_releases_prompt_comes_first_and_the_callers_system_message_stays(chat):
    x = Template()(chat(("system", "mine"), ("user", "hi"), prompt="Help {{ name }}.", variables={"name": "Ann"}))
    assert [(m.role, m.text) for m in x.messages] == [("system", "Help Ann."), ("system", "mine"), ("user", "hi")]
    assert x.edited


def test_without_a_prompt_the_exchange_is_the_same_object(chat):
    x = chat(("user", "hi"))
    assert Template()(x) is x


def test_a_value_is_never_expanded_again():
    assert render("{{a}} {{b}}", {"a": "{{b}} \\{{", "b": "x"}) == "{{b}} \\{{ x"


def test_escaped_and_foreign_braces_stay():
    assert render(r'\{{a}} {"k": {"v": 1}} {{ }} {a}', {}) == '{{a}} {"k": {"v": 1}} {{ }} {a}'


def test_an_undefined_variable_is_named_with_the_nearest():
    with pytest.raises(RequestError) as refused:
        render("{{customer}}", {"custmer": "x"})
    assert refused.value.param == "variables.customer"
    assert "'custmer'" in refused.value.text
    with pytest.raises(RequestError, match="'customer'"):
        render("{{customer}}", {})


def test_nothing_is_evaluated():
    assert render("{{ a + b }} {{ a() }} {% if a %}", {"a": "x"}) == "{{ a + b }} {{ a() }} {% if a %}"


def test_variables_are_listed_once_in_order():
    assert variables_of(r"{{b}} \{{c}} {{ a }} {{b}}") == ("b", "a")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.text(max_size=30))
def test_values_go_in_verbatim(a, b):
    assert render("<{{a}}|{{b}}>", {"a": a, "b": b}) == f"<{a}|{b}>"
