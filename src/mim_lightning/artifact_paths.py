"""What commands are given by path: checkpoint, export, index, evaluation record; and the files by which each is known.

Nothing is opened: a mistake in a path is found before anything is imported that takes seconds. Whoever reads one of
them verifies what is in it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

SHARDED_META = "meta.pt"  # of a checkpoint that is a folder
EXPORT_FACTS, EXPORT_FINGERPRINT = "config.json", "fingerprint"
MODULES_FILE = "modules.json"  # of sentence-transformers
INDEX_CARD = "card.json"
RECORD_FOLDER, RECORD_FACTS = "evaluation", "record.json"


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Return whether this is the folder of a sharded checkpoint."""
    return (Path(path) / SHARDED_META).is_file()


def validate_checkpoint(path: str | Path) -> None:
    """Raise a ValueError unless there is a checkpoint: a file, or the folder of a sharded one."""
    if Path(path).is_file() or is_sharded_checkpoint(path):
        return
    is_folder = Path(path).is_dir()
    what = f"no sharded checkpoint: it lacks {SHARDED_META}" if is_folder else "no such checkpoint file"
    raise ValueError(f"{path}: {what}; `mim runs` lists runs, each has its own in checkpoints/")


def is_export(folder: Path) -> bool:
    """Return whether an export of our format wrote this folder."""
    return (folder / EXPORT_FACTS).exists() and (folder / EXPORT_FINGERPRINT).exists()


def is_for_sentence_transformers(folder: Path) -> bool:
    """Return whether an export of that format wrote this folder."""
    return (folder / MODULES_FILE).exists() and (folder / EXPORT_FINGERPRINT).exists()


def validate_export(folder: Path) -> None:
    """Raise a ValueError unless an export of our format wrote this folder."""
    if is_for_sentence_transformers(folder):
        raise ValueError(f"{folder}: is for SentenceTransformer(folder); give the checkpoint, or its other export")
    if not is_export(folder):
        raise ValueError(f"{folder}: no export here; give a checkpoint file, or export it with mim_lightning.export")


def validate_model(path: str | Path) -> None:
    """Raise a ValueError unless there is a checkpoint or an export; what is on the hub is not looked for."""
    if "://" in str(path):
        return
    if Path(path).is_dir() and not is_sharded_checkpoint(path):
        validate_export(Path(path))
    else:
        validate_checkpoint(path)


def is_address(place: str) -> bool:
    """Return whether `place` is the address of a Milvus collection rather than a folder.

    `http://host:19530`, with `/database` and `#collection` if these are not the default ones, or `shop.db#collection`.
    """
    server = place.partition("#")[0]
    return "://" in place or (server.endswith(".db") and server != ".db")


def validate_index(place: str | Path) -> None:
    """Raise a ValueError unless there is an index in a folder; at an address it is not looked for."""
    if not is_address(str(place)) and not (Path(place) / INDEX_CARD).exists():
        raise ValueError(f"{place}: contains no index (no {INDEX_CARD}); build one with build_index")


def find_record(folder: Path) -> Path:
    """Return the folder of the evaluation record of a run, or of an evaluation, which may be the record's own.

    Raises:
        ValueError: there is none; says how to make one.
    """
    found = next((path for path in (folder, folder / RECORD_FOLDER) if (path / RECORD_FACTS).exists()), None)
    if found is not None:
        return found
    best = folder / "checkpoints" / "best.ckpt"
    if best.exists():
        words = f"checkpoint={best}", f"output={folder / 'evaluated'}"
        way = f"make one with mim evaluate {shlex.join(words)}"
    elif folder.is_dir():
        way = "give the folder of a finished run, or of an evaluation"
    else:
        way = "there is no such folder; `mim runs` lists runs"
    raise ValueError(f"{folder}: contains no evaluation record; {way}")
