"""What W&B keeps of an offline run, read back without W&B's server: its log is LevelDB's format, protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7  # bytes
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of chunks


@dataclass(frozen=True)
class Artifact:
    name: str
    files: dict[str, tuple[str, Path | None]]  # name -> digest, local file (None: a reference)

    def table(self, name: str) -> list[dict[str, Any]]:
        path = self.files[f"{name}.table.json"][1]
        assert path is not None
        content = json.loads(path.read_text())
        return [dict(zip(content["columns"], cells, strict=True)) for cells in content["data"]]


@dataclass(frozen=True)
class OfflineRun:
    history: list[dict[str, Any]]  # a dict for each logged row
    artifacts: list[Artifact]
    config: dict[str, Any]
    resume: bool = False
    exit_code: int | None = None  # None while it was not closed


def read_offline_runs(folder: Path) -> list[OfflineRun]:
    """Return the offline runs below a folder, one for each start, in order."""
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(path: Path) -> OfflineRun:
    run = OfflineRun([], [], {})
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            run.history.append({key: json.loads(value) for key, value in items.items()})
        elif kind == "artifact":
            entries = {
                entry.path: (entry.digest, Path(entry.local_path) if entry.local_path else None)
                for entry in record.artifact.manifest.contents
            }
            run.artifacts.append(Artifact(record.artifact.name, entries))
        elif kind == "config":
            run.config.update({update.key: json.loads(update.value_json) for update in record.config.update})
        elif kind == "run":
            run = replace(run, resume=record.run.resume)
        elif kind == "exit":
            run = replace(run, exit_code=record.exit.exit_code)
    return run


def _records(data: bytes) -> Iterator[Any]:
    place, whole = FILE_HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # a block's rest is left empty
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        whole = chunk if kind in (WHOLE, FIRST) else whole + chunk
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
