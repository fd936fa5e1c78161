"""Malformed tables are refused with file and row, or read as they are meant; nothing is written of the others."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.prepare import prepare
from tests.campaign.malformed import Malformed, Verdict, every, judge, record
from tests.campaign.rubbish_manifests import CASES, PRODUCTS, QUERIES
from tests.shop import picture


def images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, (colour, shape) in enumerate((("red", "disc"), ("green", "box"), ("blue", "bar"))):
        picture(colour, shape, 0).save(folder / f"shop{number}.jpg")
        picture(colour, shape, 2).save(folder / f"street{number}.jpg")
    return folder


@functools.cache
def config() -> dict[str, Any]:
    return compose("prepare", ["data=manifest", "data.source.products=p", "data.source.queries=q", "num_workers=0"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("shop") / "images")


@pytest.mark.parametrize("case", every(CASES, 12))
def test_malformed_tables(case: Malformed, tmp_path: Path, pictures: Path) -> None:
    record("manifest", case.wrong, read_case(tmp_path, pictures, case))


def read_case(folder: Path, pictures: Path, case: Malformed) -> Verdict:
    folder.mkdir(exist_ok=True)
    for name, valid in (("products.csv", PRODUCTS), ("queries.csv", QUERIES)):
        (folder / name).write_bytes(valid)
    case.damage(folder)
    paths = {table: next(iter(folder.glob(f"{table}.*")), folder / f"{table}.csv") for table in ("products", "queries")}
    data = deepcopy(config())
    data["data"]["source"] |= {**{key: str(path) for key, path in paths.items()}, "image_root": str(pictures)}
    data["data"]["folder"] = str(folder / "prepared")
    data["data"]["validation"]["num_processes"] = 1

    def read() -> Any:
        prepare(data)
        return meaning(folder / "prepared")

    return judge(read, folder, case.names, case.means, may_write=("prepared-check", ".prepared.partial"))


def meaning(folder: Path) -> tuple[Any, Any]:
    prepared = open_prepared(folder)
    titles = {facts["product_id"]: facts["title"] for facts in prepared.catalog().all_facts()}
    queries = [
        (split, facts["query_text"], facts["product_id"] if split == "train" else facts["asked_ids"][0])
        for split in prepared.splits()
        for facts in prepared.queries(split).all_facts()
    ]
    return dict(sorted(titles.items())), sorted(queries, key=lambda row: row[2])
