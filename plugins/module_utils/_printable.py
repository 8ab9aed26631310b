# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.

"""Text from outside, made safe for a terminal: its escapes could hide or forge what an operator reads."""

from __future__ import annotations

DOTS = "..."


def printable(text: object, most: int = 200) -> str:
    r"""Return C(text) on one line, with each character that is not printable as its escape, such as C(\x1b).

    Not printable are control characters (C0, DEL, C1), line ends, characters that change the direction of text or have
    no width, lone surrogates, and all spaces but U+0020. Source: str.isprintable() of Python. A backslash stays as it
    is, so that what was escaped already does not change.

    The result has at most C(most) characters, from 4 up; if there are more, it ends with C(...). Bytes are read as
    UTF-8, anything else by str(). Raises nothing.
    """
    shown = ""
    for character in _text(text, most):
        shown += character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        if len(shown) > most:
            return shown[: most - len(DOTS)] + DOTS
    return shown


def _text(text: object, most: int) -> str:
    """Return at least as much of the text as can be shown, and one character more."""
    if isinstance(text, (bytes, bytearray)):
        # No character has more than four bytes.
        return text[: 4 * (most + 1)].decode("utf-8", "backslashreplace")[: most + 1]
    try:
        return str(text)[: most + 1]
    except (ValueError, RecursionError):
        # An integer of more digits than Python converts, or lists nested too deeply.
        return f"<{type(text).__name__}>"
