"""Find the final answer in a text, as mathematical data sets mark it."""

from __future__ import annotations

from typing import Final

_BOXES: Final = ("\\boxed{", "\\fbox{")
_MARK: Final = "####"


def boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` whose braces close; None if there is none.

    Escaped braces (`\{`) do not count as braces. One pass: a text of a thousand open boxes takes no
    longer than another.
    """
    opened: list[int | None] = []  # where each box begins; None for other braces
    last: tuple[int, int] | None = None
    at = 0
    while at < len(text):
        if box := next((box for box in _BOXES if text.startswith(box, at)), None):
            at += len(box)
            opened.append(at)
            continue
        if text[at] == "\\":
            at += 1  # the next character is escaped
        elif text[at] == "{":
            opened.append(None)
        elif text[at] == "}" and opened:
            begin = opened.pop()
            if begin is not None and (last is None or begin > last[0]):
                last = begin, at
        at += 1
    return text[slice(*last)] if last else None


def marked(text: str) -> str | None:
    r"""Return the answer that a text marks: its last `\boxed{...}`, or what follows its last `####`.

    The second is how GSM8K (arXiv:2110.14168) ends its solutions; the answer is the rest of that
    line. None if the text marks nothing.
    """
    if (inside := boxed(text)) is not None:
        return inside
    _, mark, rest = text.rpartition(_MARK)
    return rest.partition("\n")[0] if mark else None
