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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that start processes first: they are slow, and would leave one worker busy at the end."""
    items.sort(key=lambda item: item.path.parent.name != "flow")


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
