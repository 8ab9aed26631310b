# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text from outside is escaped and shortened before it is printed."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from ansible_collections.hapgent.agent.plugins.module_utils._printable import printable
from hypothesis import given, settings
from hypothesis import strategies as st

same_examples = settings(derandomize=True, database=None, deadline=None)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _level in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kernel upgrade", "kernel upgrade"),
        ("Größe 50% ✓ 好", "Größe 50% ✓ 好"),
        ("", ""),
        # Terminals interpret these characters.
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\x9b31mb\x7f", r"a\x9b31mb\x7f"),
        ("done\rhost: ok\n\tfailed=0", r"done\rhost: ok\n\tfailed=0"),
        ("\0", r"\x00"),
        # These characters change the order of text, have no width, or end a line in some programs.
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("a\u200bb\ufeff\u00ad", r"a\u200bb\ufeff\xad"),
        ("a\u2028b\u00a0c", r"a\u2028b\xa0c"),
        ("\ud800 \U000e0001", r"\ud800 \U000e0001"),
        # Escaped text is not escaped again.
        (r"C:\new \x1b", r"C:\new \x1b"),
        (b"caf\xc3\xa9 \xff\x1b", r"café \xff\x1b"),
        (None, "None"),
        (-1.5, "-1.5"),
        (["\x1b"], r"['\x1b']"),
        (OSError(2, "a\nb"), r"[Errno 2] a\nb"),
        (nested(100_000), "<list>"),
    ],
)
def test_special_characters_are_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "maximum", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abc..."),
        ("abcde\n", 6, "abc..."),
        ("\u202e", 6, r"\u202e"),
        ("x" * 10_000_000, 200, "x" * 197 + "..."),
        (b"\xf0\x9f\x98\x80" * 10, 10, "\U0001f600" * 10),
        (b"\xff" * 10_000_000, 10, r"\xff\xf..."),
        (10**4000, 10, "1000000..."),
    ],
)
def test_long_text_is_shortened(text: object, maximum: int, shown: str) -> None:
    assert printable(text, maximum) == shown


@same_examples
@given(
    text=st.one_of(
        st.text(alphabet=st.characters()), st.binary(), st.integers(), st.lists(st.text()), st.just(1 << 100_000)
    ),
    maximum=st.integers(4, 300),
)
def test_any_text_is_printable_and_short(text: object, maximum: int) -> None:
    shown = printable(text, maximum)
    assert len(shown) <= maximum
    assert not [character for character in shown if unicodedata.category(character)[0] == "C"]
    assert shown.splitlines() in ([], [shown])
    # Text may be escaped in several places.
    assert printable(shown, maximum) == shown
