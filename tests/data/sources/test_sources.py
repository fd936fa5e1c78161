"""The grocery set is read as published and as its compact README says, and its absence is one clear line."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from mim_lightning.data.sources.grocery import GrocerySource
from mim_lightning.data.sources.synthetic import SyntheticSource

ROOT = Path(os.environ.get("MIM_DATA_DIR", "/nowhere")) / "data" / "grocery"
needs_grocery = pytest.mark.skipif(
    not (ROOT / "pairs.csv").is_file(), reason="set MIM_DATA_DIR to a folder that holds data/grocery"
)


@needs_grocery
def test_grocery_is_as_its_readme_says(tmp_path: Path) -> None:
    manifest = GrocerySource(str(ROOT)).read(tmp_path)
    assert list(manifest.products) == [f"gro-{number:02d}" for number in range(81)]
    assert Counter(query.split for query in manifest.queries) == {"train": 2640, "val": 296}
    assert len({query.target_ids for query in manifest.split("val")}) == 60
    product, query = manifest.products["gro-00"], manifest.queries[0]
    assert product.text is not None
    assert product.text.startswith("Golden Delicious. Golden Delicious has a white juicy pulp")
    assert (product.category, product.images) == ("Fruit/Apple", (ROOT / "images/shop/gro-00.jpg",))
    assert (query.split, query.target_ids, query.reference_ids) == ("train", ("gro-00",), ("gro-00",))
    assert (query.text, query.image) == ("golden apple", ROOT / "images/street/train_00001.jpg")
    assert len({query.query_id for query in manifest.queries}) == 2936
    images = [query.image for query in manifest.queries] + [p.images[0] for p in manifest.products.values()]
    assert all(image is not None and image.is_file() for image in images)
    assert list(tmp_path.iterdir()) == []


@needs_grocery
def test_grocery_is_described_by_its_tables() -> None:
    (tables,) = GrocerySource(str(ROOT)).describe().values()
    assert len({*tables}) == 2
    assert GrocerySource(str(ROOT)).describe() == GrocerySource(f"{ROOT}/").describe()


CLASSES = """Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),\
Iconic Image Path (str),Product Description Path (str)
Golden-Delicious,0,Apple,0,/iconic-images-and-descriptions/Fruit/Apple/Golden-Delicious/Golden-Delicious_Iconic.jpg,\
/iconic-images-and-descriptions/Fruit/Apple/Golden-Delicious/Golden-Delicious_Description.txt
Avocado,5,Avocado,1,/iconic-images-and-descriptions/Fruit/Avocado/Avocado_Iconic.jpg,\
/iconic-images-and-descriptions/Fruit/Avocado/Avocado_Description.txt
Oatly-Oat-Milk,45,Oat-Milk,22,/iconic-images-and-descriptions/Packages/Oat-Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_Iconic.jpg,\
/iconic-images-and-descriptions/Packages/Oat-Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_Description.txt
"""
PHOTOS = {
    "train": "train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg, 0, 0\n"
    "train/Packages/Oat-Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_001.jpg, 45, 22\n",
    "val": "val/Fruit/Avocado/Avocado_003.jpg, 5, 1\n",
    "test": "test/Fruit/Avocado/Avocado_009.jpg, 5, 1\n",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Three classes and four photos, laid out as github.com/marcusklasson/GroceryStoreDataset is."""
    folder = tmp_path / "GroceryStoreDataset" / "dataset"
    described = folder / "iconic-images-and-descriptions/Fruit/Avocado/Avocado_Description.txt"
    described.parent.mkdir(parents=True)
    described.write_text("Smooth green flesh,\nbuttery  taste.\n")
    (folder / "classes.csv").write_text(CLASSES)
    for split, lines in PHOTOS.items():
        (folder / f"{split}.txt").write_text(lines)
    return folder.parent


def test_grocery_as_published(clone: Path, tmp_path: Path) -> None:
    source = GrocerySource(str(clone))
    manifest = source.read(tmp_path)
    root = clone / "dataset"
    assert list(manifest.products) == ["gro-00", "gro-05", "gro-45"]
    avocado, milk = manifest.products["gro-05"], manifest.products["gro-45"]
    assert (avocado.text, avocado.category) == ("Avocado. Smooth green flesh, buttery taste.", "Fruit/Avocado")
    assert avocado.images == (root / "iconic-images-and-descriptions/Fruit/Avocado/Avocado_Iconic.jpg",)
    assert (milk.text, milk.category) == ("Oatly Oat Milk", "Packages/Oat-Milk")
    assert [(query.split, query.image, query.target_ids, query.text) for query in manifest.queries] == [
        ("train", root / "train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg", ("gro-00",), None),
        ("train", root / "train/Packages/Oat-Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_001.jpg", ("gro-45",), None),
        ("val", root / "val/Fruit/Avocado/Avocado_003.jpg", ("gro-05",), None),
        ("test", root / "test/Fruit/Avocado/Avocado_009.jpg", ("gro-05",), None),
    ]
    assert GrocerySource(str(root)).describe() == source.describe()
    before = source.describe()
    (root / "val.txt").write_text("val/Fruit/Pear/Anjou/Anjou_001.jpg, 20, 13\n")
    assert source.describe() != before
    with pytest.raises(ValueError, match=r"val.txt, row 1, column 'product_id': empty"):
        source.read(tmp_path)
    (root / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"val.txt: no such file"):
        source.read(tmp_path)


def test_missing_grocery_says_what_to_set(tmp_path: Path) -> None:
    source = GrocerySource(str(tmp_path / "grocery"))
    for call in (source.describe, lambda: source.read(tmp_path)):
        with pytest.raises(ValueError, match=r"no grocery set found .*MIM_DATA_DIR.*data\.source\.root") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_synthetic_source_reads_what_it_draws(tmp_path: Path) -> None:
    arguments = {"num_products": 12, "image_size": 32, "change_share": 0.5, "seed": 1}
    source = SyntheticSource(train_queries_per_product=2, val_queries_per_product=1, **arguments)  # type: ignore[arg-type]
    manifest = source.read(tmp_path / "source")
    assert len(manifest.products) == 12
    assert {query.split for query in manifest.queries} == {"train", "val"}
    assert manifest.products_path.is_relative_to(tmp_path)
    assert source.describe()["synthetic"].items() >= arguments.items()
