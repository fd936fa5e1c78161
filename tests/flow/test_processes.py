"""`evaluate`, `build_index` and `embed` in processes of a launcher give what one process gives, to the last bit."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from mim_lightning.build_index import build_index
from mim_lightning.checkpoint_evaluation import PARTS_FOLDER
from mim_lightning.config import compose
from mim_lightning.embed import embed
from mim_lightning.evaluate import evaluate
from mim_lightning.inference.loading import load_trained
from mim_lightning.interruption import Interruption
from mim_lightning.lit.module import MatchModule
from mim_lightning.run import identify
from mim_lightning.train import train
from mim_lightning.types import Batch, Embeddings
from tests.flow.entry_points import start
from tests.flow.test_growing import write_additions
from tests.shop import small, write_shop

CLOCK = ("build_seconds", "created")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_shop(folder / "shop", num_products=7)
    write_additions(folder / "shop")
    sizes = ["data.shards.samples_per_shard=3", "data.eval_batch_size=2"]  # the last batch of each set is smaller
    config = compose("train", small(folder, "model=4tower", "trainer.max_epochs=1", *sizes))
    train(config)
    return identify(config)[0].last_checkpoint


def commands(checkpoint: Path, folder: Path, *more: str) -> list[tuple[str, list[str]]]:
    words = [f"checkpoint={checkpoint}", "trainer=cpu", *more]
    return [
        ("evaluate", [*words, f"output={folder}/evaluated"]),
        ("build_index", [*words, f"output={folder}/index"]),
        ("embed", [*words, f"output={folder}/vectors", "tower=query", "split=train"]),
        ("build_index", [*words, f"output={folder}/index", *update(checkpoint, folder)]),
    ]


def update(checkpoint: Path, folder: Path) -> list[str]:
    """Return the words that add a product to an index."""
    products = f"data.source.products={checkpoint.parents[3]}/shop/new.csv"
    words = ["update=true", f"embeddings={folder}/more", "data=manifest", products, "data.source.queries=null"]
    return [*words, f"data.folder={folder}/more-shards", "data.num_workers=0"]


def start_ranks(
    num_processes: int, given: list[tuple[str, list[str]]], launcher: str = "torchrun"
) -> tuple[int, str, str]:
    finished = start(launcher, str(num_processes), json.dumps(given), module="tests.flow.ranks")
    return finished.returncode, finished.stdout, finished.stderr


def name_as_before(embeddings: Path, fingerprint: str) -> None:
    """Turn embeddings into those of the same model as versions before 0.2 name it."""
    facts = embeddings / "embeddings.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "fingerprint": fingerprint}))
    for path in embeddings.glob("*.safetensors"):
        written, tensors = path.stat().st_mtime_ns, load_file(path)
        save_file(tensors, path, metadata={"fingerprint": fingerprint})
        os.utime(path, ns=(written, written))


@pytest.mark.parametrize(
    ("launcher", "num_processes"), [("torchrun", 2), pytest.param("srun", 4, marks=pytest.mark.slow)]
)
def test_processes_of_a_launcher_give_what_one_gives(
    checkpoint: Path, tmp_path: Path, launcher: str, num_processes: int
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    for name, words in commands(checkpoint, one):
        {"evaluate": evaluate, "build_index": build_index, "embed": embed}[name](compose(name, words))

    code, output, errors = start_ranks(
        num_processes, commands(checkpoint, several, f"trainer.devices={num_processes}"), launcher
    )

    assert code == 0, errors
    assert output.count("mrr") == 1 and output.count("recall@10") == 2, "one process prints"
    for name in ("results.json", "evaluation/record.json"):
        assert (several / "evaluated" / name).read_bytes() == (one / "evaluated" / name).read_bytes(), name
    assert sorted(path.name for path in (one / "evaluated").rglob("*")) == sorted(
        path.name for path in (several / "evaluated").rglob("*")
    )
    for path in one.rglob("*.safetensors"):
        mine, other = load_file(path), load_file(several / path.relative_to(one))
        assert mine.keys() == other.keys() and all((mine[key] == other[key]).all() for key in mine), path
    cards = [json.loads((folder / "index" / "card.json").read_text()) for folder in (one, several)]
    assert [card["num_products"] for card in cards] == [8, 8], "the index has grown"
    kept = [{key: value for key, value in card.items() if key not in (*CLOCK, "files")} for card in cards]
    said = [json.dumps(card).replace(str(folder), "") for card, folder in zip(kept, (one, several), strict=True)]
    assert said[0] == said[1]
    contents = [sorted((part["crc32"], part["num_bytes"]) for part in card["files"].values()) for card in cards]
    assert contents[0] == contents[1], "the same rows in the same order"
    tables = [pyarrow.parquet.read_table(folder / "index" / "embeddings" / "rows.parquet") for folder in (one, several)]
    assert tables[0].equals(tables[1])
    for path in (one / "vectors").glob("query-train.*"):
        assert path.read_bytes() == (several / "vectors" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_evaluate_starts_processes_and_returns_their_results(checkpoint: Path) -> None:
    words = [f"checkpoint={checkpoint}", "trainer=cpu"]
    several = evaluate(compose("evaluate", [*words, "trainer.devices=2"]))
    assert json.dumps(several) == json.dumps(evaluate(compose("evaluate", words)))


def test_an_evaluation_that_was_killed_goes_on_with_what_it_had_embedded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"checkpoint={checkpoint}", "trainer=cpu"]
    evaluate(compose("evaluate", [*words, f"output={tmp_path}/whole"]))
    words += ["save_interval=0", f"output={tmp_path}/killed"]
    log = tmp_path / "opened"
    log.mkdir()
    killed = [("kill", ["1", "4"]), ("log_shards", [str(log)]), ("evaluate", [*words, "trainer.devices=2"])]

    code, _, errors = start_ranks(2, killed)

    opened = {path.name: set(path.read_text().splitlines()) for path in log.iterdir()}
    assert opened.get("0", set()) <= {"val 0", "val 1", "catalogue 0", "catalogue 1"}, "its rows are 0 to 3"
    assert opened["1"] == {"val 1", "val 2", "catalogue 1", "catalogue 2"}, "its rows are 4 to 6"

    parts = [load_file(path) for path in tmp_path.glob(f"killed/{PARTS_FOLDER}/*.safetensors")]
    num_kept = sum(len(part["row_keys"]) for part in parts)
    assert code == 1 and "rank 1 ended with -9" in errors and num_kept >= 5, errors
    embedded: list[int] = []
    embed = MatchModule.validation_step

    def count(module: MatchModule, batch: Batch, *arguments: int) -> dict[str, Embeddings]:
        embedded.append(len(batch))
        return embed(module, batch, *arguments)

    monkeypatch.setattr(MatchModule, "validation_step", count)
    caplog.set_level("INFO")
    evaluate(compose("evaluate", words))

    (found,) = re.findall(r"embedded: (\d+) of 14 rows are embedded already", caplog.text)
    assert sum(embedded) == 14 - int(found) and int(found) >= num_kept - 2, "the last batch of each set is done again"
    for name in ("results.json", "evaluation/record.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        mine, other = load_file(path), load_file(tmp_path / "killed" / path.relative_to(tmp_path / "whole"))
        assert mine.keys() == other.keys() and all((mine[key] == other[key]).all() for key in mine), path
    assert not (tmp_path / "killed" / PARTS_FOLDER).exists()


def test_the_process_that_starts_others_loads_no_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mim_lightning.checkpoint_evaluation._load_model", lambda config: pytest.fail("loads the model")
    )
    monkeypatch.setattr("mim_lightning.evaluate.launch", lambda *given: {"num_processes": given[-1]})
    words = [f"checkpoint={checkpoint}", "trainer=cpu", "trainer.devices=2"]
    assert evaluate(compose("evaluate", words)) == {"num_processes": 2}


def test_an_interruption_says_that_the_same_command_resumes_where_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(config: dict[str, Any]) -> None:
        raise Interruption(signal.SIGTERM)

    monkeypatch.setattr("mim_lightning.evaluate.evaluate_checkpoint", interrupt)
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.touch()
    for words, resumes in (([], False), (["output=x"], True), (["output=x", "save_interval=null"], False)):
        with pytest.raises(Interruption) as caught:
            evaluate(compose("evaluate", [f"checkpoint={checkpoint}", "trainer=cpu", *words]))
        assert caught.value.resumes is resumes


def test_a_failure_of_one_process_ends_all_and_what_is_embedded_stays(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={checkpoint}", "trainer=cpu", f"output={tmp_path}/index"]
    build_index(compose("build_index", words))
    (shard,) = checkpoint.parents[3].rglob("catalogue/000001.tar")
    first, second, third = (tmp_path / "index" / "embeddings" / f"{idx:06d}.safetensors" for idx in range(3))
    before, content = (load_file(second), first.stat().st_mtime_ns), shard.read_bytes()
    second.unlink()
    third.unlink()
    shard.write_bytes(b"x" * len(content))
    started = time.monotonic()

    code, _, errors = start_ranks(2, [("build_index", [*words, "trainer.devices=2"])])

    shard.write_bytes(content)
    assert code == 1 and time.monotonic() - started < 60
    assert errors.count("error:") == 1 and "catalogue/000001.tar" in errors and not second.exists()
    num_left = 1 + third.exists()
    capfd.readouterr()
    name_as_before(first.parent, load_trained(checkpoint, like="0" * 16).fingerprint)
    build_index(compose("build_index", words))
    assert f"{num_left} of 3 shards are embedded already" in capfd.readouterr().out
    after = load_file(second), first.stat().st_mtime_ns
    assert after[1] == before[1] and all((after[0][key] == before[0][key]).all() for key in before[0])
