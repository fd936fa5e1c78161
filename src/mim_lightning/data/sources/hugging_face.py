"""Data sets of Hugging Face as a source: on the hub, in a local folder of files, or saved by `save_to_disk`.

Images of the manifest point into the Arrow files of the `datasets` library; nothing is decoded or copied. Reading needs
the extra `datasets`, describing does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.content_hash import folder_id
from mim_lightning.data.manifest.manifest import Manifest, changed_names, declared_fields, read_tables
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.manifest.table import ColumnNames, Table, TablePart
from mim_lightning.io.paths import PathOrUrl, to_path_or_url

EXTRA = "pip install 'mim-lightning[datasets]'"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class DatasetPlace:
    """A data set as `datasets.load_dataset` names it.

    Args:
        path: a name on the hub, a folder of files, or one written by `save_to_disk`.
        name: the configuration; None: the only one.
        split: one of its splits; None: all of them.
        revision: a branch, tag or commit of the hub; None: main.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        rest = ", ".join(part for part in (self.name, self.split, self.revision) if part)
        return f"{self.path} ({rest})" if rest else self.path

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    @property
    def is_saved(self) -> bool:
        return any((Path(self.path) / name).is_file() for name in ("dataset_dict.json", "state.json"))


class HuggingFaceSource:
    """A manifest in two data sets, or in one with a query and its product a row.

    Args:
        products: arguments of a DatasetPlace; None: each row of `queries` contains its product too.
        queries: likewise; None: a catalog without queries. Without a column for it, a row's split is the data set's.
        columns, image_root, segments, metadata, download, clean_html, fields: see ManifestSource; relative paths of
            images start at a local folder.
    """

    def __init__(
        self,
        products: Mapping[str, str | None] | None,
        queries: Mapping[str, str | None] | None,
        columns: Mapping[str, ColumnNames] | None = None,
        image_root: str | None = None,
        segments: Sequence[str] = (),
        metadata: Sequence[str] | None = None,
        download: DownloadSettings | None = None,
        clean_html: bool = False,
        fields: Mapping[str, str | None] | None = None,
    ) -> None:
        self.products = DatasetPlace(**products) if products else None  # type: ignore[arg-type]
        self.queries = DatasetPlace(**queries) if queries else None  # type: ignore[arg-type]
        self.columns, self.segments, self.download = columns or {}, tuple(segments), download
        self.image_root = to_path_or_url(image_root) if image_root else None
        self.metadata = None if metadata is None else tuple(metadata)
        self.clean_html, self.fields = clean_html, declared_fields(fields)

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        tables = [
            _open_table(place, kind, work_dir) if place else None
            for kind, place in (("products", self.products), ("queries", self.queries))
        ]
        options = self.columns, self.image_root, self.segments, self.metadata, on_issue, self.clean_html, self.fields
        return replace(read_tables(tables[0], tables[1], *options), download=self.download)

    def describe(self) -> dict[str, Any]:
        said: dict[str, Any] = {"clean_html": True} if self.clean_html else {}
        return (said | {"fields": self.fields} if self.fields else said) | {
            "products": _describe(self.products) if self.products else None,
            "queries": _describe(self.queries) if self.queries else None,
            "image_root": str(self.image_root) if self.image_root else None,
            "columns": changed_names(self.columns),
            "segments": list(self.segments),
            "metadata": None if self.metadata is None else list(self.metadata),
        }


def _describe(place: DatasetPlace) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": place.name, "split": place.split}
    if place.is_local:
        return facts | {"folder": folder_id(Path(place.path))}
    return facts | {"path": place.path, "commit": _commit_of(place)}


def _commit_of(place: DatasetPlace) -> str:
    """Return the commit of a revision.

    Raises:
        ValueError: the hub does not know it.
    """
    if place.revision and COMMIT.fullmatch(place.revision):
        return place.revision
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(place.path, revision=place.revision).sha)
    except Exception as error:  # the hub's client has a dozen error classes
        raise ValueError(
            f"{place}: no such folder, and no such data set on the hub ({' '.join(str(error).split())}); "
            "a commit as revision needs no request to the hub"
        ) from error


def _open_table(place: DatasetPlace, kind: str, work_dir: Path) -> Table:
    parts = []
    for split, dataset in _load(place).items():
        name, num_before = f"{place.path}, split {split}", 0
        labels = {
            column: feature.names
            for column, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel"
        }
        # a slice such as "train[:10%]" is part of its split
        constants = {"split": split.partition("[")[0]} if kind == "queries" else {}
        for path, num_rows in _arrow_files(dataset, work_dir / kind / split):
            parts.append(TablePart(path, name, num_before, constants, labels))
            num_before += num_rows
    root: PathOrUrl = Path(place.path) if place.is_local else Path()
    return Table(str(place), root, tuple(parts))


def _load(place: DatasetPlace) -> dict[str, Any]:
    """Return the selected splits of a data set by name.

    Raises:
        ValueError: the extra is missing, or the data set or split does not exist.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{place}: install the extra: {EXTRA}") from error
    revision = None if place.is_local else _commit_of(place)
    try:
        if place.is_saved:
            loaded = datasets.load_from_disk(place.path)
        else:
            loaded = datasets.load_dataset(place.path, place.name, split=place.split, revision=revision)
    except Exception as error:  # builders, the hub's client and pyarrow have error classes of their own
        raise ValueError(f"{place}: cannot be loaded ({' '.join(str(error).split())})") from error
    if isinstance(loaded, datasets.Dataset):
        return {place.split or str(loaded.split or "train"): loaded}
    if place.split is None:
        return dict(loaded)
    if place.split not in loaded:
        raise ValueError(f"{place}: no split '{place.split}'; it has {sorted(loaded)}")
    return {place.split: loaded[place.split]}


def _arrow_files(dataset: Any, folder: Path) -> list[tuple[Path, int]]:
    """Return the Arrow files with exactly the rows of a data set, in order, and the number of rows in each.

    The files of a slice or selection contain further rows: its rows are written to `folder`.
    """
    files = [(Path(file["filename"]), 0) for file in dataset.cache_files]
    files = [(path, _num_rows(path)) for path, _ in files]
    # as many rows as all files together: no slice
    if dataset._indices is None and sum(num_rows for _, num_rows in files) == len(dataset):
        return files
    dataset.save_to_disk(folder)
    return [(path, _num_rows(path)) for path in sorted(folder.glob("*.arrow"))]


def _num_rows(path: Path) -> int:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_stream(file).read_all().num_rows
