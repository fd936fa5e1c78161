"""Random changes of valid files: read, or refused in one line; no call stack, no hang, nothing half written.

Each file has a seeded sequence of changes of its own (hypothesis), counted apart from the inputs with one known fault.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mim_lightning import load
from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.figures.training_log import read_log
from mim_lightning.analysis.query_history import read_tracked
from mim_lightning.analysis.record import read_record
from mim_lightning.config import load_stored_config
from mim_lightning.data.images.codec import decode_upright, normalize_encoding
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.run import Run
from mim_lightning.search.index.factory import open_index
from tests.campaign.malformed import ANYTHING, REFUSED, judge
from tests.campaign.outcomes import SEED, cases, record_outcome
from tests.campaign.rubbish_images import AVIF, GIF, JPEG, PNG, PROGRESSIVE, TIFF, WEBP
from tests.campaign.rubbish_manifests import PRODUCTS, QUERIES, ROWS, jsonl, parquet
from tests.campaign.rubbish_shards import INDEX, PLACES, SETTINGS, TAR
from tests.campaign.test_rubbish_shards import read_all
from tests.migration.test_migration import FILES

NUM_SHORT, NUM_WHOLE = 6, 200  # changes of each file
Read = Callable[[Path], Any]
MARKS = (*(b"\0", b"\n", b'"', b"{", b"}", b"[", b"]", b",", b"-1"), b"9" * 40, b"NaN", b"null", b"\xff\xfe", b"../")
places = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(st.just("byte"), places, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), places, st.one_of(st.sampled_from(MARKS), st.binary(min_size=1, max_size=8))),
    st.tuples(st.just("remove"), places, st.integers(1, 64)),
    st.tuples(st.just("repeat"), places, st.integers(1, 64)),
    st.tuples(st.just("cut"), places, st.none()),
)


def changed(content: bytes, changes: list[tuple[str, float, Any]]) -> bytes:
    for kind, place, what in changes:
        at = int(place * len(content))
        head, tail = content[:at], content[at:]
        content = {
            "byte": lambda head=head, tail=tail, what=what: head + what + tail[len(what) :],
            "insert": lambda head=head, tail=tail, what=what: head + what + tail,
            "remove": lambda head=head, tail=tail, what=what: head + tail[what:],
            "repeat": lambda head=head, tail=tail, what=what: head + tail[:what] + tail,
            "cut": lambda head=head: head,
        }[kind]()
    return content


def read_table(folder: Path) -> Any:
    products = next(folder.glob("products.*"))
    issues: list[Any] = []
    manifest = ManifestSource(str(products), str(folder / "queries.csv")).read(folder, issues.append)
    assert all("\n" not in str(issue) for issue in issues)
    return len(manifest.products)


def read_image(folder: Path) -> Any:
    data = (folder / "image").read_bytes()
    return decode_upright(normalize_encoding(data, 64)).shape


def table(suffix: str, content: bytes) -> tuple[str, Callable[[Path], Any], Read]:
    def write(folder: Path) -> None:
        (folder / f"products.{suffix}").write_bytes(content)
        (folder / "queries.csv").write_bytes(QUERIES)

    return f"products.{suffix}", write, read_table


def image(content: bytes) -> tuple[str, Callable[[Path], Any], Read]:
    return "image", lambda folder: (folder / "image").write_bytes(content), read_image


def copied(source: str, name: str, read: Read) -> tuple[str, Callable[[Path], Any], Read]:
    def copy(folder: Path) -> None:
        ignored = shutil.ignore_patterns() if "checkpoints" in name else shutil.ignore_patterns("checkpoints")
        shutil.copytree(FILES / source, folder, dirs_exist_ok=True, ignore=ignored)

    return name, copy, read


def of_checkpoint(folder: Path) -> Any:
    found = load_matcher(folder / "checkpoints/last.ckpt").fingerprint
    assert found == "0c673ae931d39235", "weights that were changed are taken"
    return found


def of_export(folder: Path) -> Any:
    return load(folder).fingerprint


PREPARED = "prepared/manifest"
TARGETS: dict[str, tuple[str, Callable[[Path], Any], Read]] = {
    "CSV": table("csv", PRODUCTS),
    "JSONL": table("jsonl", jsonl(*ROWS)),
    "Parquet": table("parquet", parquet()),
    "JPEG": image(JPEG),
    "progressive JPEG": image(PROGRESSIVE),
    "PNG": image(PNG),
    "WebP": image(WEBP),
    "GIF": image(GIF),
    "TIFF": image(TIFF),
    "AVIF": image(AVIF),
    "index of a set": copied(PREPARED, INDEX, read_all),
    "shard": copied(PREPARED, TAR, read_all),
    "byte index": copied(PREPARED, PLACES, read_all),
    "settings": copied(PREPARED, SETTINGS, lambda folder: open_prepared(folder).verify(print)),
    "checkpoint": copied("interrupted", "checkpoints/last.ckpt", of_checkpoint),
    "facts of an export": copied("exported", "config.json", of_export),
    "weights of an export": copied("exported", "model.safetensors", of_export),
    "card": copied("index", "card.json", lambda folder: open_index(folder).card),
    "record": copied("finished", "evaluation/record.json", lambda folder: read_record(folder).facts),
    "ranks": copied("finished", "evaluation/image_to_text.parquet", lambda folder: read_record(folder).facts),
    "embeddings": copied("finished", "evaluation/embeddings.safetensors", lambda f: read_embeddings(f / "evaluation")),
    "results": copied("finished", "results.json", lambda folder: Run("run", folder).read_results()),
    "config of a run": copied("finished", "config.yaml", lambda folder: load_stored_config(folder / "config.yaml")),
    "history": copied("interrupted", "browser/history.jsonl", read_tracked),
    "log": copied("interrupted", "csv/version_0/metrics.csv", read_log),
}
SIZES = {"": NUM_SHORT, ", more": NUM_WHOLE}
EACH = [(f"{name}{size}", (name, number)) for name in TARGETS for size, number in SIZES.items()]


@pytest.mark.parametrize("case", cases(EACH, list(TARGETS)))
def test_changed_files(case: tuple[str, int], tmp_path: Path) -> None:
    label, number = case
    name, make, read = TARGETS[label]
    folder = tmp_path / "input"
    folder.mkdir()
    make(folder)
    valid, outcomes = (folder / name).read_bytes(), Counter[str]()

    @seed(SEED)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(change, min_size=1, max_size=3))
    def look(changes: list[tuple[str, float, Any]]) -> None:
        content = changed(valid, changes)
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(1, 1))
        verdict = judge(lambda: read(folder), folder, "", ANYTHING)
        assert not verdict.is_fault, f"{verdict.outcome}: {verdict.text[:300]} after {changes}"
        outcomes["refused" if verdict.outcome == REFUSED else "read"] += content != valid

    with record_outcome("rubbish", "random changes of valid files", f"{number} changes of a {label}") as found:
        look()
        found.outcome = "each refused in one line, or read"
    print(label, dict(outcomes))
