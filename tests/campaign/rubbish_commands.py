"""Malformed inputs of each command, and what the error names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.campaign.malformed import cut, flip, json_at, write
from tests.campaign.rubbish_configs import YAMLS

PREPARE = (
    "data=manifest",
    "data.source.products=shop/products.csv",
    "data.source.queries=shop/queries.csv",
    "paths.data=out",
)
TRAIN = (*PREPARE, "paths.runs=out/runs", "trainer=cpu")
MODEL = "checkpoint=exported"
# module, arguments, the damage, what the line names
Command = tuple[str, tuple[str, ...], Callable[[Path], Any], str]
COMMANDS: dict[str, Command] = {
    "prepare, a table in another encoding": ("prepare", PREPARE, write("shop/products.csv", b"product_id,image,title\n0,shop0.jpg,caf\xe9\n"), "row 2"),
    "prepare, an image that is text": ("prepare", PREPARE, write("shop/shop1.jpg", b"text"), "shop1.jpg"),
    "prepare, a shard to verify": ("prepare", ("data=shards", "data.folder=prepared/manifest", "verify=true"), flip("prepared/manifest/queries/val/000000.tar", 0.5), "000000.tar"),
    "prepare, ids to delete": ("prepare", ("data=shards", "data.folder=prepared/manifest", "delete.products=ids.jsonl"), write("ids.jsonl", b'{"product_id": "000"}\n{"prod'), "row 2"),
    "train, a value": ("train", (*TRAIN, "data.batch_size=0"), lambda folder: None, "batch_size"),
    "train, a key": ("train", (*TRAIN, "+optim.lrr=1"), lambda folder: None, "lrr"),
    "train, a checkpoint to start from": ("train", (*TRAIN, "init_from=interrupted/checkpoints/last.ckpt"), cut("interrupted/checkpoints/last.ckpt", 0.5), "last.ckpt"),
    "evaluate, a checkpoint": ("evaluate", ("checkpoint=interrupted/checkpoints/last.ckpt", "trainer=cpu"), write("interrupted/checkpoints/last.ckpt", b"<html>"), "last.ckpt"),
    "export, a checkpoint": ("export", ("checkpoint=interrupted/checkpoints/last.ckpt", "output=out"), flip("interrupted/checkpoints/last.ckpt", 0.001), "last.ckpt"),
    "build_index, a card to update": ("build_index", ("checkpoint=interrupted/checkpoints/last.ckpt", "output=index", "delete=[000]"), cut("index/card.json", 0.5), "card.json"),
    "search, an index": ("search", ("index=index", MODEL, "text=red"), json_at("index/card.json", "kind", value="hnsw"), "main_index"),
    "search, an image": ("search", ("index=index", MODEL, "image=shop/shop1.jpg"), cut("shop/shop1.jpg", 0.5), "image"),
    "serve, a card": ("serve", ("index=index", MODEL), write("index/card.json", b"[]"), "card.json"),
    "compare, a record": ("compare", ("finished", "other"), cut("other/evaluation/record.json", 0.7), "record.json"),
    "plot, a log": ("plot", ("interrupted", "--output", "out", "--only", "curves"), write("interrupted/csv/version_0/metrics.csv", b"<html>"), "metrics.csv"),
    "tune_fusion, embeddings": ("tune_fusion", ("finished",), cut("finished/evaluation/embeddings.safetensors", 0.5), "embeddings.safetensors"),
    "ab_report, an event log": ("ab_report", ("event_log=events.db", "experiment_name=x"), write("events.db", b"SQLite format 3\0" + b"\xff" * 4096), "events.db"),
    **{
        f"train, a config that is {said}": ("train", ("--config-dir=conf", "--config-name=broken", "paths.runs=out"), write("conf/broken.yaml", text), "")
        for said, text in YAMLS.items()
    },
}  # fmt: skip
