"""What rounding costs is measured on real data, with both models and with one for each side."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.analysis.html.validation_page import write_validation_report
from mim_lightning.config import compose
from mim_lightning.data.preparation.preparation import prepare_data
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.data_config import build_preparation
from mim_lightning.export import export
from mim_lightning.inference.loading import load
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.quantization_loss import measure_loss
from mim_lightning.types import Batch, Direction, ImageSpec, TowerInput
from tests.inference.models import export_to, write_checkpoint
from tests.shop import small, write_shop


def hit_at_1(queries: LoadedModel, products: LoadedModel, folder: Path) -> float:
    """The share of photos that find the product they show, by hand."""
    query_rows = open_prepared(folder).queries("val").read(range(7))
    offered = open_prepared(folder).catalog().read(range(7))
    found = (
        queries.embed_images([sample.inputs["query_image"] for sample in query_rows])
        @ products.embed_products(
            [sample.inputs["product_image"] for sample in offered],
            [sample.inputs["product_text"] for sample in offered],
        ).T
    )
    best = [offered[row].product_id for row in found.argmax(1)]
    return float(
        np.mean([product_id in sample.target_ids for product_id, sample in zip(best, query_rows, strict=True)])
    )


def test_quantization_loss_is_measured_on_the_data_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = write_checkpoint(tmp_path)
    unmeasured = (export_to(tmp_path / "a", checkpoint, "precision=int8") / "README.md").read_text()
    assert "Not measured: the data of its training (manifest) are not available" in unmeasured
    write_shop(tmp_path / "shop", num_products=7)
    data = compose("train", small(tmp_path))["data"]
    folder = prepare_data(build_preparation(data), write_validation_report).folder
    output = export_to(tmp_path / "a", checkpoint, "precision=bfloat16")
    original, rounded = load(checkpoint, device="cpu"), load(output, device="cpu")
    pairs = [(original, original), (rounded, rounded), (rounded, original)]
    expected = " | ".join(f"{hit_at_1(*pair, folder):.4f}" for pair in pairs)
    card = (output / "README.md").read_text()
    assert f"| image_to_product | hit@1 | {expected} |" in card
    assert (
        "over 7 queries (0.1429 each) and 7 products" in card and "image_to_product: hit@1" in capsys.readouterr().out
    )
    named = compose("export", [f"checkpoint={checkpoint}", f"output={tmp_path / 'b'}", "precision=bfloat16"])
    moved = folder.rename(tmp_path / "moved")
    assert (export({**named, "data": {**data, "folder": str(moved), "source": None}}) / "README.md").read_text() == card


SPEC = ImageSpec(size=(1, 1))  # of no meaning here


@dataclass(frozen=True)
class Linear:
    """An encoder of vectors that were made up: a matrix, then unit length."""

    matrix: torch.Tensor
    spec: ImageSpec = SPEC

    def __call__(self, inputs: TowerInput) -> torch.Tensor:
        assert isinstance(inputs, torch.Tensor)
        return torch.nn.functional.normalize(inputs @ self.matrix, dim=-1)


def batch_of(tower: str, vectors: torch.Tensor, products: torch.Tensor, num_padding: int = 0) -> Batch:
    numbers = torch.arange(len(vectors))
    return Batch(
        inputs={tower: vectors},
        rows={tower: numbers},
        sample_nums=numbers,
        query_keys=numbers + 100,
        product_keys=products,
        target_keys=products[:, None],
        target_grades=torch.ones(len(vectors), 1, dtype=torch.int64),
        reference_keys=products[:, None],
        category_keys=numbers * 0,
        is_padding=numbers >= len(vectors) - num_padding,
    )


def test_each_side_is_embedded_by_its_model() -> None:
    random = torch.Generator().manual_seed(3)
    offered, query_rows = (torch.randn(n, 6, generator=random) for n in (20, 12))
    products = torch.arange(12)
    query_rows = query_rows + 1.5 * offered[products]
    matrices = [torch.eye(6), torch.eye(6) + 0.9 * torch.randn(6, 6, generator=random)]
    models = [{"query_image": Linear(m), "product_image": Linear(m)} for m in matrices]
    batches = [
        [
            batch_of(
                "query_image",
                torch.cat([query_rows, query_rows[:2]]),
                torch.cat([products, products[:2]]),
                num_padding=2,
            )
        ],
        [batch_of("product_image", offered[:15], torch.arange(15))],
        [batch_of("product_image", offered[15:], torch.arange(15, 20))],  # its row numbers start at 0 again
    ]
    losses = measure_loss(*models, batches, {"found": Direction("query_image", "product_image")}, {})
    assert (losses.num_queries, losses.num_products) == (12, 20)
    encode = [models[0]["query_image"], models[1]["query_image"]]
    for metric, depth in (("hit@1", 1), ("hit@10", 10)):
        expected = []
        for query, gallery in ((0, 0), (1, 1), (1, 0)):
            scores = encode[query](query_rows) @ encode[gallery](offered).T
            own = scores[torch.arange(12), products]
            expected.append(float(((scores > own[:, None]).sum(1) < depth).float().mean()))
        assert losses.recall["found"][metric] == pytest.approx(tuple(expected))
        assert depth > 1 or len({*expected}) == 3, "the three must differ, or the test could not distinguish them"
    for tower, inputs in (("query_image", query_rows), ("product_image", offered)):
        cosines = (encode[0](inputs) * encode[1](inputs)).sum(1)
        assert losses.cosines[tower] == pytest.approx((float(cosines.mean()), float(cosines.min())), abs=1e-6)
