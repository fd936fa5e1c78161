"""The files beside this one, made by an older commit; see README.md. It runs with that commit's code and no other.

cd /tmp/migration && PYTHONPATH=<worktree of 44631f1>/src:<worktree of 44631f1> python make.py files
# the same, with: python make.py runs 44631f1
cd /tmp/migration && PYTHONPATH=<worktree of 8ee3d2b>/src:<worktree of 8ee3d2b> python make.py runs 8ee3d2b
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mim_lightning.config import build, build_matcher, compose
from mim_lightning.inference.model import load
from mim_lightning.lit.module import MatchModule
from mim_lightning.run import identify
from mim_lightning.search.opening import open_searcher
from mim_lightning.search.query import SearchQuery
from mim_lightning.train import train
from tests.shop import write_shop

COMMAND = [
    *("data=manifest", "data.source.products=shop/products.csv", "data.source.queries=shop/queries.csv"),
    *("paths.data=prepared", "paths.runs=runs", "paths.external=external", "data.batch_size=8"),
    *("data.eval_batch_size=8", "data.num_workers=0", "data.shards.samples_per_shard=8", "data.window=2"),
    *("encoder.image.image_size=32", "encoder.image.width=64", "encoder.text.max_length=8", "encoder.text.width=32"),
    *("encoder.text.num_layers=1", "encoder.text.vocabulary=64", "embed_dim=16", "trainer=cpu", "trainer.max_epochs=2"),
    *("callbacks.progress_bar=null", "logger=csv", "report=last"),
]
ORDERS = {
    "stream": ["data/order=stream"],
    "lanes": ["data/order=stream", "data.num_lanes=2"],
    "grouped": ["data/order=grouped", "data.order.rows_per_product=2", "data.order.same_category=0.5"],
    "weighted": ["data/order=weighted", "data.rows_per_epoch=16"],
    "mix": ["data.mix={other: {folder: prepared/manifest, share: 0.25, ids: shared}}"],
}
# by commit: commands whose run ids are kept; a set that has to be at hand is not among them
RUNS = {
    "44631f1": [
        ["model=2tower"],
        ["model=2tower", "optim=sgd", "schedule=constant", "report=best"],
        ["model=3tower", "loss=sigmoid", "seed=3", "trainer=ddp", "trainer.devices=2"],
        ["model=3tower", "schedule.warmup_share=0.2", "logger=none", "callbacks.retrieval_browser=null"],
        ["model=3tower", "data.augment.min_scale=0.5", "data.check.on_bad=skip", "data.check.max_bad=2"],
        ["model=3tower", "data/protocol=disjoint", "data.on_bad=skip", "data.cache.look_ahead=2"],
        *(["model=3tower", *order] for order in ORDERS.values()),
        *(["model=3tower", f"encoder={name}"] for name in ("mobilenetv2_minilm", "mobilenetv2_tiny")),
        *(["model=2tower", f"encoder/image={name}"] for name in ("convnext_tiny", "dinov2", "mobilenetv2", "resnet50")),
        *(["model=2tower", f"encoder/image={name}"] for name in ("siglip_b16", "vit_b16")),
        *(["model=3tower", f"encoder/text={name}"] for name in ("bert_base", "minilm")),
    ],
    "8ee3d2b": [
        ["model=4tower"],
        *(["model=3tower", f"encoder={name}"] for name in ("siglip_b16", "clip_vit_b32", "clip_vit_g14")),
    ],
}
PHOTOS = ["shop/street0-1.jpg", "shop/street3-2.jpg", "shop/street5-0.jpg"]
TEXTS = ["red", "a blue box", ""]


def write_tables() -> None:
    _, queries = write_shop(Path("shop"), num_products=8)
    rows = [{**row, "weight": 1 + number % 3} for number, row in enumerate(csv.DictReader(queries.open()))]
    with queries.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def train_twice() -> Path:
    """Train, and keep the folder of the run as it was after the first of two epochs."""
    interrupted = Path("interrupted")

    def keep(module: MatchModule) -> None:
        if module.current_epoch == 1:
            shutil.copytree(run.folder, interrupted)

    MatchModule.on_train_epoch_start = keep
    config = compose("train", [*COMMAND, "model=4tower"])
    run, _ = identify(config)
    train(config)
    run.folder.rename("finished")
    interrupted.rename(run.folder)
    return run.folder


def use(checkpoint: Path) -> None:
    for name, *more in (
        ("build_index", "output=index"),
        ("export", "output=exported", "precision=bfloat16"),
        ("evaluate", "output=evaluated"),
    ):
        subprocess.run([sys.executable, "-m", f"mim_lightning.{name}", f"checkpoint={checkpoint}", *more], check=True)


def expect(checkpoint: Path) -> None:
    def vectors(path: Path) -> dict[str, np.ndarray]:
        model = load(path)
        return {
            "query_image": model.embed_images(PHOTOS),
            "query_text": model.embed_texts(TEXTS),
            "product_text": model.embed_texts(TEXTS, "product_text"),
            "query": model.embed_query(PHOTOS, TEXTS),
            "product": model.embed_products(PHOTOS, [*TEXTS[:2], None]),
        }

    paths = {"checkpoint": checkpoint, "exported": Path("exported"), "finished": Path("finished/checkpoints/last.ckpt")}
    found = {f"{name}/{key}": value for name, path in paths.items() for key, value in vectors(path).items()}
    save_file(found, "expected/embeddings.safetensors")
    queries = [
        {"images": [PHOTOS[0]], "num_hits": 5},
        {"text": "blue", "num_hits": 3, "where": {"category": "box"}},
        {"images": PHOTOS[:2], "text": "green", "not_text": "bar", "weights": {"text": 0.5}, "num_hits": 4},
        {"like": "002", "num_hits": 3},
    ]
    searcher = open_searcher("index", str(checkpoint))
    hits = [searcher.search(SearchQuery(**query)).hits for query in queries]
    shown = [[{"id": hit.product_id, "score": hit.score, "metadata": hit.metadata} for hit in found] for found in hits]
    write("expected/hits.json", [{"query": q, "hits": h} for q, h in zip(queries, shown, strict=True)])
    write("expected/orders.json", {name: {"command": more, "epochs": order(more)} for name, more in ORDERS.items()})


def order(more: list[str]) -> list[list[list[list[int]]]]:
    """Return of each batch of two epochs the rows: their number, query key and product key."""
    config = compose("train", [*COMMAND, "model=4tower", *more])
    config = identify(config)[1]
    data = build(config["data"], specs=build_matcher(config).input_specs())
    data.prepare_data()
    loader = data.train_dataloader()
    columns = ("sample_nums", "query_keys", "product_keys")
    return [
        [list(map(list, zip(*(getattr(batch, name).tolist() for name in columns), strict=True))) for batch in loader]
        for _ in range(2)
    ]


def runs(commit: str) -> None:
    with Path("expected/runs.jsonl").open("a") as file:
        for own in RUNS[commit]:
            is_tiny = not any(part.startswith("encoder") for part in own)
            common = [part for part in COMMAND if is_tiny or not part.startswith(("encoder.", "embed_dim"))]
            run, config = identify(compose("train", [*common, *own]))
            known = {"id": run.run_id, "command": [*common, *own], "config": config}
            file.write(json.dumps(known, separators=(",", ":")) + "\n")


def write(path: str, content: object) -> None:
    Path(path).write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False))


if __name__ == "__main__":
    Path("expected").mkdir(exist_ok=True)
    if sys.argv[1] == "runs":
        runs(sys.argv[2])
    else:
        write_tables()
        folder = train_twice()
        write("expected/command.json", [*COMMAND, "model=4tower"])
        use(folder / "checkpoints" / "last.ckpt")
        expect(folder / "checkpoints" / "last.ckpt")
