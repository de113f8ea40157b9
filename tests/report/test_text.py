"""Text of an agent is harmless for a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.report.text import inert, one_line

ANY = st.text(alphabet=st.characters(), max_size=60) | st.text(
    alphabet=st.sampled_from(
        [chr(c) for c in (*range(0xA0), 0xAD, 0x61C, *range(0x2000, 0x2070), 0xFEFF, 0xD800,
                          0xDFFF, 0xE0001, 0xE007F, 0x1F600)]
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\x0db"),
        ("a\x08b", "a\\x08b"),
        ("\x7f", "\\x7f"),
        ("\0", "\\x00"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\ufeffbom", "\\ufeffbom"),
        ("\U000e0041", "\\ue0041"),
        ("\ud800", "\\ud800"),
        ("gr\u00fc\u00dfe \u65e5\u672c \U0001f600", "gr\u00fc\u00dfe \u65e5\u672c \U0001f600"),
        ("", ""),
    ],
)
def test_what_could_steer_a_terminal_or_a_reader_becomes_visible(text: str, shown: str) -> None:
    assert inert(text) == shown


@settings(deadline=None, max_examples=400)
@given(ANY)
def test_no_text_keeps_a_control_or_format_character(text: str) -> None:
    out = inert(text)
    kinds = {unicodedata.category(c) for c in out if c not in "\n\t"}
    assert kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert out.count("\n") == text.count("\n")
    assert inert(out) == out
    out.encode()


@settings(deadline=None)
@given(ANY, st.integers(min_value=1, max_value=40))
def test_one_line_is_one_line_of_that_width(text: str, width: int) -> None:
    out = one_line(text, width)
    assert len(out) <= width
    assert out.splitlines() in ([], [out])


def test_a_long_line_says_that_it_goes_on() -> None:
    assert one_line("abc def", 7) == "abc def"
    assert one_line("abc  def\nghi", 8) == "abc def…"
    assert one_line("x" * 10_000_000, 3) == "xx…"
