"""Which of the right words somebody may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

_LONGEST: Final = 64  # longer words are not compared: the time that it takes grows with their length
_LEAST_ALIKE: Final = 0.6


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like ``word``; upper case, ``-`` and ``.`` don't count. None: none is."""
    if len(word) > _LONGEST:
        return None
    plain = {_plain(item): item for item in known}
    found = get_close_matches(_plain(word), plain, n=1, cutoff=_LEAST_ALIKE)
    return plain[found[0]] if found else None


def hint(word: str, known: Iterable[str], meant: Mapping[str, str] | None = None) -> str:
    """A question that names the nearest known word, with a blank before it; empty: none is near.

    Args:
        word: what was given.
        known: the right words.
        meant: what to say for words that are not like any of them, lower case to a whole sentence.
    """
    told = (meant or {}).get(_plain(word))
    if told is not None:
        return f" {told}"
    found = nearest(word, known)
    return "" if found is None else f" Did you mean {found}?"


def _plain(word: str) -> str:
    return re.sub(r"[-.\s]", "_", word).casefold()
