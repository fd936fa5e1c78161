"""Files that appear whole or not at all, whatever happens to the process that writes them.

A path comes in, a path beside it goes out for as long as it is written to. Every room calls it; a reader finds the
former content or the new one, never a part.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to: it takes the place of `path` at the end, or is removed after an error.

    No two writers are given the same path, be they threads, processes or machines that share the disk.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
