"""The model card shows the metrics of this model, or that there are none."""

import json
from pathlib import Path

import pytest

from mim_lightning.cli import compose_arguments
from mim_lightning.export import VERBATIM_KEYS
from mim_lightning.inference.model_card import Terms, _widths, find_evaluation
from mim_lightning.model.checkpoint import load_matcher
from tests.inference.models import export_to, write_checkpoint


def write_results(folder: Path, fingerprint: str) -> None:
    (folder / "evaluation").mkdir(parents=True)
    record = {"run": {"fingerprint": fingerprint, "val_split": "val_seen", "config": {"data": {"name": "shoes"}}}}
    (folder / "evaluation" / "record.json").write_text(json.dumps(record))
    results = {"val/image_to_image/hit@1": 0.625, "val/image_to_image/hit@1/low": 0.5}
    results |= {"val/image_to_image/hit@1/high": 0.75, "counts/image_to_image/num_queries": 17, "num_products": 5}
    (folder / "results.json").write_text(json.dumps(results))


def test_the_card_shows_the_numbers_of_this_model(tmp_path: Path, exported: Path) -> None:
    assert "no evaluation of this model" in (exported / "README.md").read_text()
    checkpoint, _ = write_checkpoint(tmp_path)
    fingerprint = load_matcher(checkpoint).fingerprint
    write_results(tmp_path / "run", fingerprint)
    terms = ["license=cc-by-4.0", "credits='Pictures: [Twemoji](https://example.org), rasterized.'"]
    card = (export_to(tmp_path / "a", checkpoint, *terms) / "README.md").read_text()
    assert "\nlicense: cc-by-4.0\n---\n" in card
    assert card.endswith("\n## Credits\n\nPictures: [Twemoji](https://example.org), rasterized.\n")
    assert "| image_to_image | 0.625 [0.500, 0.750] | 17 |" in card
    assert "split `val_seen` of `shoes`" in card and "against 5 products" in card and fingerprint in card
    assert "| product_image | TinyImage, the weights of query_image | image, 32 x 32 pixels |" in card
    assert "Fusion `query`: 1 query_image + 1 query_text" in card and 'embed_query(["photo.jpg"], ["in blue"])' in card


def test_the_license_has_a_name_of_the_hub() -> None:
    with pytest.raises(ValueError, match=r"^license=MIT License: give the hub's name of one, such as apache-2.0"):
        Terms("MIT License")
    with pytest.raises(ValueError, match=r"^credits=2024: give text, in Markdown"):
        Terms(credits=2024)  # type: ignore[arg-type]


@pytest.mark.parametrize("credits", ["by Ann, MIT", "Pictures: Twemoji (rasterized)", "2024", "'quoted'"])
def test_credits_are_taken_as_they_are(credits: str) -> None:
    config = compose_arguments("export", ["checkpoint=a", "output=b", f"credits={credits}"], VERBATIM_KEYS)
    assert config["credits"] == credits.strip("'")


def test_the_numbers_of_another_model_are_not_taken(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert find_evaluation(checkpoint, None, "mine") is None
    write_results(tmp_path / "run", "mine")
    found = find_evaluation(checkpoint, None, "mine")
    assert found is not None and found.results["val/image_to_image/hit@1"] == 0.625
    assert find_evaluation(checkpoint, None, "other") is None  # the run's numbers are those of its other checkpoint
    write_results(tmp_path / "elsewhere", "other")
    elsewhere = find_evaluation(checkpoint, tmp_path / "elsewhere", "other")
    assert elsewhere is not None and (elsewhere.data, elsewhere.split) == ("shoes", "val_seen")
    with pytest.raises(ValueError, match=r"elsewhere: is of model other, the checkpoint is mine"):
        find_evaluation(checkpoint, tmp_path / "elsewhere", "mine")
    with pytest.raises(ValueError, match=r"holds no results\.json with its record"):
        find_evaluation(checkpoint, tmp_path, "mine")


def test_numbers_of_cut_vectors_have_a_table() -> None:
    results = {f"val/image/hit@1{end}": 0.5 for end in ("", "/width_16", "/width_16/low", "/width_16/high", "/width_8")}
    *_, first, second = _widths(results, ["hit@1", "mrr"])
    assert [first, second] == ["| 8 | image | 0.500 | - |", "| 16 | image | 0.500 [0.500, 0.500] | - |"]
    assert not [*_widths({"val/image/hit@1": 0.5, "initial/image/hit@1/width_8": 0.5}, ["hit@1"])]
