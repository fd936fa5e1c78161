"""A file's own column names, found by those that are wanted: exactly, or but for case, blanks and underscores.

Names come in as the header has them, wanted name -> the file's goes out, or an error that names the key which decides;
`table` calls it. `Product ID ` is what was meant by product_id where no other column could be.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence


def fold(name: str) -> str:
    """Return what is left of a column's name without case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_\-\ufeff]+", "", name).casefold()


def match_columns(origin: str, found: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return wanted name -> the file's where these differ in no more than `fold` takes away.

    Args:
        origin: of the header, for errors.
        found: the columns of the file.
        wanted: name -> key of config that names it.

    Raises:
        ValueError: several columns could be meant.
    """
    matches: dict[str, str] = {}
    for name, key in wanted.items():
        if name in found:
            continue
        close = [column for column in dict.fromkeys(found) if column not in wanted and fold(column) == fold(name)]
        if len(close) > 1:
            raise ValueError(
                f"{origin}: {' and '.join(map(repr, close))} could both be '{name}'; choose by {key}=<column>"
            )
        if close and close[0] not in matches.values():
            matches[name] = close[0]
    return matches


def missing_column(origin: str, found: Collection[str], name: str, key: str) -> ValueError:
    """Return the error for a column that a file lacks."""
    close = difflib.get_close_matches(fold(name), map(fold, found), 1)
    meant = next((column for column in found if close and fold(column) == close[0]), None)
    another = (
        f"name another with {key}=<column>"
        if meant is None
        else f"did you mean '{meant}'? Then give {_word(key, meant)}"
    )
    return ValueError(
        f"{origin}: missing column '{name}', it has {sorted(filter(None, found))}; {another}, or null if there is none"
    )


def _word(key: str, value: str) -> str:
    """Return a word of the command line, in quotes for Hydra and for the shell where it needs them."""
    return f"{key}={value}" if re.fullmatch(r"[\w.\-]+", value) else f"""'{key}="{value}"'"""
