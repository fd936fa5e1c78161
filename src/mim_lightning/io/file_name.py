"""Names of files that are read from other files: only a plain name may be joined to a folder.

Pass every name from a card, a config or a checkpoint through `validate_file_name`, and the file that it names through
`validate_inside`: then nothing outside the folder is read or written.
"""

from __future__ import annotations

import re
from pathlib import Path

from mim_lightning.io.paths import irregular_kind

_PLAIN = re.compile(r"\w(?:[\w.-]{0,198}\w)?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices of Windows
_CODE = (".py", ".pyc", ".pyd", ".so", ".pth", ".pkl", ".pickle")


def validate_file_name(name: object, where: str) -> str:
    """Return a name if it is that of a file in any folder it is joined to, and not of a file that runs code.

    Args:
        name: from a file.
        where: the name comes from, for the error.

    Raises:
        ValueError: it has a separator, begins or ends with a dot, is reserved, or has a suffix of code.
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or _RESERVED.fullmatch(name):
        raise ValueError(f"{where}: {name!r} cannot be the name of a file; give letters, digits, '.', '-' and '_'")
    if name.lower().endswith(_CODE):
        raise ValueError(f"{where}: {name!r} is the name of code, which is not read from a file")
    return name


def validate_inside(folder: Path, path: Path) -> Path:
    """Return `path` if it is a regular file of a folder, links followed.

    The hub's cache keeps the files of a snapshot in a folder `blobs` beside it: links to there are allowed.

    Raises:
        ValueError: it is a link that leads out of the folder, is missing, or is not a regular file.
    """
    top = folder.resolve()
    allowed = [top, top.parents[1] / "blobs"] if top.parent.name == "snapshots" else [top]
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"{path}: cannot be followed ({error})") from error
    if not any(target.is_relative_to(root) for root in allowed):
        raise ValueError(f"{path}: is a link that leads out of {folder}; put the file itself there")
    try:
        kind = irregular_kind(path.stat().st_mode)
    except OSError:
        raise ValueError(f"{path}: is missing") from None
    if kind:
        raise ValueError(f"{path}: is {kind}, not a file")
    return path
