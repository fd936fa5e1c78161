"""Training with features of frozen encoders from the cache ends as training that computes them, and computes none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.data.loading import collate
from mim_lightning.encoders import TinyImage
from mim_lightning.run import Run
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small

Fit = Callable[..., Run]
FROZEN = ["model=2tower", "model.towers.query_image.train=frozen", "data.augment=null", "schedule=constant"]


def cached(folder: Path) -> list[str]:
    return ["data.feature_cache.enabled=true", f"data.feature_cache.folder={folder}"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the batches of images that encoders get from now on, and -1 for a decoded image."""
    sizes: list[int] = []
    forward, decode = TinyImage.forward, collate.eval_image
    monkeypatch.setattr(
        TinyImage, "forward", lambda self, inputs: (sizes.append(len(inputs)), forward(self, inputs))[1]
    )
    monkeypatch.setattr(collate, "eval_image", lambda *arguments: (sizes.append(-1), decode(*arguments))[1])
    return sizes


def test_a_run_reads_features_once_computed(
    fit: Fit, shop: Path, tmp_path: Path, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    plain = fit(*FROZEN, f"paths.runs={tmp_path / 'plain'}")
    assert "frozen: query_image; data.feature_cache.enabled=true encodes their inputs once" in caplog.text
    expected, results = weights(plain), timeless(plain)
    encoded.clear()
    folder = tmp_path / "features"
    run = fit(*FROZEN, *cached(folder), f"paths.runs={tmp_path / 'first'}")
    num_images = sum(size for size in encoded if size > 0)
    assert run.run_id == plain.run_id and num_images == 28 == encoded.count(-1)  # 7 products, 3 queries of each
    encoded.clear()
    again = fit(*FROZEN, *cached(folder), f"paths.runs={tmp_path / 'second'}")
    assert not encoded
    for other in (run, again):
        for name, value in weights(other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert timeless(other) == pytest.approx(results, abs=1e-6)


@pytest.mark.slow
def test_damaged_features_are_computed_again(
    fit: Fit, tmp_path: Path, encoded: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*FROZEN, *cached(tmp_path / "features")]
    before = weights(fit(*words, f"paths.runs={tmp_path / 'first'}"))
    path = next((tmp_path / "features").rglob("*.features.npy"))
    path.write_bytes(path.read_bytes()[:-1])
    capfd.readouterr()
    encoded.clear()
    after = weights(fit(*words, f"paths.runs={tmp_path / 'second'}"))
    said = capfd.readouterr().err
    assert "damaged; these features of tower 'query_image' are computed again" in said and encoded.count(-1) == 28
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_what_would_not_fit_is_computed_every_time(
    fit: Fit, tmp_path: Path, encoded: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit(*FROZEN, *cached(tmp_path / "features"), "data.feature_cache.max_size=1kB")
    assert "data.feature_cache.max_size=1kB: " in capfd.readouterr().err
    assert run.read_results() and encoded.count(-1) > 28 and not list((tmp_path / "features").rglob("*.npy"))


@pytest.mark.slow
def test_with_augmentation_evaluation_alone_reads_features(fit: Fit, tmp_path: Path, encoded: list[int]) -> None:
    words = ["model=4tower", *FROZEN[1:2], "model.towers.product_text.train=frozen"]
    run = fit(*words, *cached(tmp_path / "features"))
    assert run.read_results()
    assert encoded.count(-1) == 14  # 7 queries and 7 products, once; training rows are augmented
    assert len(list((tmp_path / "features").iterdir())) == 2  # encoders


@pytest.mark.slow
def test_two_processes_share_the_work_and_end_as_one(fit: Fit, shop: Path, tmp_path: Path) -> None:
    one = fit(*FROZEN, f"paths.runs={tmp_path / 'one'}", "data.batch_size=16")
    words = [*FROZEN, *cached(tmp_path / "features"), "trainer.devices=2", "data.num_workers=1", "data.batch_size=16"]
    finished = start(*small(shop, *words))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert len(list((tmp_path / "features").rglob("*.keys.npy"))) == 2  # a part of each process
    two = Run(one.run_id, tmp_path / "runs" / one.run_id)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-4)
