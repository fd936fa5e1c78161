"""Names of files that stand in other files: only a plain name may be joined to a folder.

Whoever reads names from a card, a config or a checkpoint passes them through here first, and files that were named
through `inside`, so that nothing outside the folder is read or written.
"""

from __future__ import annotations

import re
from pathlib import Path

_PLAIN = re.compile(r"\w(?:[\w.-]{0,198}\w)?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices of Windows
_CODE = (".py", ".pyc", ".pyd", ".so", ".pth", ".pkl", ".pickle")


def plain_name(name: object, where: str) -> str:
    """Return a name if it is that of a file in whichever folder it is joined to, and of none that runs code.

    Raises:
        ValueError: it has a separator, begins or ends with a dot, or is reserved; `where` says whose name it is.
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or _RESERVED.fullmatch(name):
        raise ValueError(f"{where}: {name!r} cannot be the name of a file; give letters, digits, '.', '-' and '_'")
    if name.lower().endswith(_CODE):
        raise ValueError(f"{where}: {name!r} is the name of code, which is not read from a file")
    return name


def inside(folder: Path, path: Path) -> Path:
    """Return a regular file of a folder, links followed; the hub's cache keeps what it links to beside its snapshots.

    Raises:
        ValueError: it is a link that leads out of the folder, or no regular file.
    """
    top = folder.resolve()
    allowed = [top, top.parents[1] / "blobs"] if top.parent.name == "snapshots" else [top]
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"{path}: cannot be followed ({error})") from error
    if not any(target.is_relative_to(root) for root in allowed):
        raise ValueError(f"{path}: is a link that leads out of {folder}; put the file itself there")
    if not path.is_file():
        raise ValueError(f"{path}: is {'no regular file' if path.exists() else 'missing'}")
    return path
