"""What a config says of data: what is prepared and how it changes, built, and what tells data from other data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import build, construct
from mim_lightning.expected_types import validate_type
from mim_lightning.fields import TEXT_FIELDS
from mim_lightning.former_names import to_first

# other imports are in functions: mistakes are reported at once, and worker processes import neither torch nor pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.preparation import Preparation
    from mim_lightning.data.versions.change import Change
    from mim_lightning.types import InputSpec


def build_preparation(data: Mapping[str, Any], num_workers: int | None = None) -> Preparation:
    """Build the parts of a `data` section that say what is prepared, and where.

    Args:
        num_workers: processes that write; None: as `data` has it.
    """
    from mim_lightning.data.manifest.composed_rows import parse_variants
    from mim_lightning.data.preparation.preparation import Preparation
    from mim_lightning.io.paths import to_path_or_url

    return Preparation(
        to_path_or_url(data["folder"]),
        build(data["source"]),
        build(data["shards"]),
        build(data["splits"]),
        build(data.get("validation")),  # older runs have no such section
        build(data.get("cache")),
        data["num_workers"] if num_workers is None else num_workers,
        parse_variants(data.get("compose")),
    )


def build_change(config: dict[str, Any]) -> Change | None:
    """Return the change of prepared data that `add`, `delete` and `compact` describe, None without any.

    Raises:
        ValueError: a value of another type, or keys that exclude each other; names the key.
    """
    from mim_lightning.data.versions.change import Change, Deletion, Tables

    validate_type("add.replace", config["add"]["replace"], bool)
    for key in ("products", "queries"):
        validate_type(f"add.{key}", config["add"][key], str | None)
        validate_type(f"delete.{key}", config["delete"][key], str | list)
    validate_type("compact", config["compact"], float | None)
    # one id that is a number is no path of a table
    delete = {key: [given] if isinstance(given, int) else given for key, given in config["delete"].items()}
    change = Change(
        construct("add", Tables, **config["add"]), construct("delete", Deletion, **delete), config["compact"]
    )
    validate_type("prune.keep", config["prune"]["keep"], int | None)
    validate_type("prune.force", config["prune"]["force"], bool)
    if config["prune"]["force"] and config["prune"]["keep"] is None:
        raise ValueError("prune.force=true: give prune.keep, the number of versions that stay")
    shown = "list_versions" if config["list_versions"] else "prune" if config["prune"]["keep"] is not None else ""
    if change and shown:
        raise ValueError(f"{shown}: not together with add, delete or compact")
    for key in ("overwrite", "validate_only", "verify") if change or shown else ():
        if config[key]:
            raise ValueError(f"{key}=true: not together with {shown or 'add, delete or compact'}")
    if shown and config["engine"] == "ray":
        raise ValueError(f"engine=ray: not together with {shown}")
    if not change:
        if config["add"]["replace"]:
            raise ValueError("add.replace=true: give add.products or add.queries, the tables of the rows that replace")
        return None
    if config["engine"] == "ray":
        raise ValueError("engine=ray: prepares data as a whole; rows are added and deleted by engine=processes")
    if config["compact"] is not None and (change.add != Tables() or change.delete != Deletion([], [])):
        raise ValueError("compact: not together with add or delete; compact the version that they make")
    return change


def build_text_specs(config: dict[str, Any]) -> dict[str, InputSpec] | None:
    """Return the spec of the encoder in `tokenizer`, for each text field."""
    encoder = config.get("tokenizer")
    if encoder is None:
        return None
    without_weights = {**encoder, "pretrained": None} if "pretrained" in encoder else encoder
    return dict.fromkeys(TEXT_FIELDS, build(without_weights).spec)


def describe_source(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the description of a `data` section's source, which hashes whole tables; None if it has no source."""
    source = build(data["source"])
    return None if source is None else source.describe()


def describe_data(data: Mapping[str, Any], source: Mapping[str, Any] | None) -> Any:
    """Return what tells the data of a `data` section from other data, wherever they are.

    Args:
        source: the description of its source, see `describe_source`.
    """
    own = _described(data["folder"], data) if source is None else _with_new_content(source, data["folder"])
    others: dict[str, Any] = {}
    if data.get("distractors"):
        others["distractors"] = _described(data["distractors"], data)
    if data.get("vectors"):
        from mim_lightning.data.loading.vector_table import digest_vectors, validate_vectors

        files = validate_vectors(data["vectors"])
        others |= {"vectors": {name: digest_vectors(path) for name, path in files.items()}} if files else {}
    if table := (data.get("sampling") or {}).get("table"):
        from mim_lightning.data.sampling.hard_negatives import TABLE
        from mim_lightning.data.sampling.negative_table import digest_negatives

        others["negatives"] = digest_negatives(Path(table), f"{TABLE}={table}")
    if mixed := {name: entry for name, entry in (data.get("mixture") or {}).items() if entry}:
        # under their first names, as run ids hold them
        entries = to_first({"data": {"mixture": mixed}})["data"]["mix"]
        others["mix"] = {
            name: {**entry, "folder": _described(entry["folder"], data)} if entry.get("folder") else entry
            for name, entry in entries.items()
        }
    return {"own": own, **others} if others else own


def _with_new_content(source: Mapping[str, Any], folder: str) -> Any:
    """Add the content made of a source to its description where that replaced other content: other images."""
    from mim_lightning.data.preparation.prepared import find_new_content

    content = find_new_content(folder)
    return source if content is None else {"source": source, "content": content}


def _described(folder: str, data: Mapping[str, Any]) -> Any:
    """Return what prepared data are made of, read as the `cache` of a `data` section says."""
    from mim_lightning.data.preparation.prepared import FIRST_CONTENT, open_prepared
    from mim_lightning.data.shards.set_index import VERSIONS

    described = open_prepared(folder, build(data.get("cache"))).describe()
    # a set keeps the ids of its runs when it grows: which version a run reads is its state
    return {key: value for key, value in described.items() if key not in (FIRST_CONTENT, VERSIONS)}
