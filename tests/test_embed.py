"""The entry point embed: files of vectors of products and of queries, and one line for each mistake."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import mim_lightning
from mim_lightning.config import compose
from mim_lightning.embed import embed
from mim_lightning.run import identify
from mim_lightning.train import train
from tests.shop import small, write_shop


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    write_shop(folder / "shop")
    config = compose("train", small(folder, "trainer.max_epochs=0", "data.shards.samples_per_shard=4"))
    train(config)
    return identify(config)[0].best_checkpoint


def read(folder: Path, *words: str, name: str) -> tuple[pyarrow.Table, dict]:
    embed(compose("embed", [*words, f"output={folder}", "trainer=cpu"]))
    return pyarrow.parquet.read_table(folder / f"{name}.parquet"), json.loads((folder / f"{name}.json").read_text())


def test_products_and_queries_have_the_vectors_of_the_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mim_lightning.load(checkpoint, device="cpu")
    table, facts = read(tmp_path, f"checkpoint={checkpoint}", "tower=product_text", name="product_text")
    vectors = np.stack(table["vector"].to_numpy())
    np.testing.assert_allclose(vectors, model.embed_texts(table["title"].to_pylist(), "product_text"), atol=1e-5)
    assert table["product_id"].to_pylist() == [f"{number:03d}" for number in range(6)]
    assert facts["fingerprint"] == model.fingerprint and facts["num_rows"] == 6
    assert (facts["dimension"], facts["dtype"], facts["num_absent"]) == (16, "float32", 0)
    assert "6 vectors of 'product_text', 16 float32 each" in capsys.readouterr().out

    words = [f"checkpoint={checkpoint}", "tower=query", "split=train", "dtype=float16"]
    table, facts = read(tmp_path, *words, name="query-train")
    assert table["vector"].type == pyarrow.list_(pyarrow.float16(), 16) and len(table) == facts["num_rows"] == 18
    assert len({*table["query_id"].to_pylist()}) == 18 and "red" in table["text"].to_pylist()
    assert all(len(ids) == 1 for ids in table["target_ids"].to_pylist())
    (tmp_path / "embeddings" / "query-train" / "000001.safetensors").unlink()
    again, _ = read(tmp_path, *words, name="query-train")
    (tmp_path / "query-val.json").write_text("of a former file")
    _, facts = read(tmp_path, f"checkpoint={checkpoint}", "tower=query", name="query-val")
    assert facts["file"] == "query-val.parquet", "the split that training evaluated"
    assert again.equals(table) and "4 of 5 shards are embedded already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split=train"], "split=train: is of queries"),
        (["dtype=int8"], "dtype=int8: choose one of float32, float16"),
        (["tower=query_txt"], "tower=query_txt: the model has no such tower or fusion; it has query_image"),
        (["tower=query", "split=trian"], "no split 'trian'"),
    ],
)
def test_a_mistake_is_named(checkpoint: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        embed(compose("embed", [f"checkpoint={checkpoint}", f"output={tmp_path}", "trainer=cpu", *words]))
    assert not [*tmp_path.rglob("*.parquet")]
