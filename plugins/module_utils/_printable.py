# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Make untrusted text safe for a terminal. Its escape sequences could hide or forge what an operator reads."""

from __future__ import annotations

DOTS = "..."


def printable(text: object, maximum: int = 200) -> str:
    r"""Return C(text) on one line, with each non-printable character replaced by its escape, such as C(\x1b).

    Non-printable characters are control characters (C0, DEL, C1), line ends, characters that change the direction of
    text or have no width, lone surrogates, and all spaces except U+0020. Source: str.isprintable() of Python.
    Backslashes are not escaped, so that text that is already escaped does not change.

    The result has at most C(maximum) characters, which must be 4 or more. If it is cut, it ends with C(...). Bytes are
    decoded as UTF-8, and other objects are converted with str(). Never raises an exception.
    """
    shown = ""
    for character in _text(text, maximum):
        shown += character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        if len(shown) > maximum:
            return shown[: maximum - len(DOTS)] + DOTS
    return shown


def _text(text: object, maximum: int) -> str:
    """Return at least the part of the text that can be shown, plus one character to detect that it is cut."""
    if isinstance(text, (bytes, bytearray)):
        # A character has at most four bytes in UTF-8.
        return text[: 4 * (maximum + 1)].decode("utf-8", "backslashreplace")[: maximum + 1]
    try:
        return str(text)[: maximum + 1]
    except (ValueError, RecursionError):
        # An integer with more digits than Python converts, or lists that are nested too deeply.
        return f"<{type(text).__name__}>"
