"""Labels: one grammar, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.kit import labels

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
VALUES = st.from_regex(r"[!-+\--~]{1,22}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=16))
def test_what_is_written_is_read(made: dict[str, str]) -> None:
    assert labels.read(", ".join(f"{n}={v}" for n, v in made.items())) == made


@given(st.text(max_size=200))
def test_anything_else_is_refused_in_words_or_in_bounds(text: str) -> None:
    try:
        found = labels.read(text)
    except ValueError:
        return
    assert len(found) <= 16
    assert all(0 < len(n) <= 64 and 0 < len(v) <= 64 for n, v in found.items())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("env", "no name=value pair"),
        ("", "no name=value pair"),
        ("env=", "value of 'env'"),
        ("=prod", "the name ''"),
        ("env=prod,env=test", "given twice"),
        ("e nv=prod", "the name 'e nv'"),
        ("env=" + "x" * 65, "value of 'env'"),
        ("n" * 65 + "=x", "the name"),
        ("env=pröd", "value of 'env'"),
        ("env=a b", "value of 'env'"),
        ("env=a\x00b", "value of 'env'"),
        (",".join(f"n{i}=x" for i in range(17)), "more than 16"),
    ],
)
def test_what_is_out_of_bounds_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        labels.read(text)
