"""Whole runs on a shop of a few products, for every test that needs one."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from mim_lightning.train import train
from tests import preloaded
from tests.shop import small, write_shop


def pytest_configure() -> None:
    preloaded.start()  # in the process that starts the workers, which find it in their environment
    # a shell has it ignored in what it starts in the background, and every process that a test starts inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A worker runs whole files in this order; a long one among the last would leave the other worker without work.
LONGEST_FIRST = (
    "preparation/test_ray.py",
    "flow/test_grocery.py",
    "flow/test_world_size.py",
    "flow/test_train.py",
    "tests/test_extras.py",
    "tests/test_quickstart.py",
    "flow/test_search.py",
    "data/loading/test_loader.py",
    "preparation/test_interrupted.py",
    "conf/test_configs.py",
    "flow/test_sweep.py",
    "analysis/test_record.py",
    "service/test_ui.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, then other tests of whole runs."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.as_posix()
        known = (idx for idx, end in enumerate(LONGEST_FIRST) if name.endswith(end))
        return next(known, len(LONGEST_FIRST)), item.path.parent.name != "flow"

    ranks = {path: rank(item) for path, item in {item.path: item for item in items}.items()}
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_shop(tmp_path / "shop", num_products=7)
    return tmp_path


@pytest.fixture
def fit(shop: Path) -> Callable[..., Run]:
    """Train in this process and return the run."""

    def call(*overrides: str) -> Run:
        config = compose("train", small(shop, *overrides))
        train(config)
        return identify(config)[0]

    return call
