"""Whole runs on a shop of a few products, for every test that needs one."""

import functools
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from mim_lightning.train import train
from tests import preloaded, quick_compose
from tests.shop import small, write_shop


def pytest_configure() -> None:
    preloaded.start()  # in the process that starts the workers, which find it in their environment
    # a shell has it ignored in what it starts in the background, and every process that a test starts inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # a worker whose tests have spoken to Milvus forks in others: gRPC's handlers of a fork write lines into its output
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    quick_compose.install()
    gc.disable()  # until all is imported: nothing of that is garbage


def pytest_collection_finish() -> None:
    gc.freeze()  # no later collection goes through a million objects of modules
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extensions report what is left at the exit


# A worker runs whole files, or folders whose tests share what takes seconds to make, in this order; a long one among
# the last would leave the other workers without work.
FOLDERS = ("tests/campaign/", "tests/inference/", "tests/online/")
LONGEST_FIRST = (
    "tests/campaign/",
    "tests/data/preparation/test_ray.py",
    "tests/flow/test_train.py",
    "tests/flow/test_world_size.py",
    "tests/conf/test_configs.py",
    "tests/inference/",
    "tests/flow/test_sweep.py",
    "tests/search/service/test_ui.py",
    "tests/flow/test_search.py",
    "tests/data/versions/test_next_version.py",
    "tests/data/preparation/test_interrupted.py",
    "tests/lit/test_trainer.py",
    "tests/analysis/test_record.py",
    "tests/data/loading/test_loader.py",
    "tests/lit/test_tracked_queries.py",
    "tests/migration/test_migration.py",
    "tests/flow/test_grocery.py",
    "tests/data/test_prepared_again.py",
    "tests/test_notebook.py",
    "tests/flow/test_checkpoints.py",
    "tests/data/manifest/test_variants.py",
    "tests/test_plot.py",
    "tests/test_extras.py",
    "tests/test_quickstart.py",
    "tests/io/test_damaged_file.py",
    "tests/lit/test_preemption.py",
    "tests/online/",
)


def unit_of(nodeid: str) -> str:
    """Return the file or folder that one worker runs as a whole."""
    return next((folder for folder in FOLDERS if nodeid.startswith(folder)), nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest units first, then other tests of whole runs."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        unit = unit_of(item.nodeid)
        place = LONGEST_FIRST.index(unit) if unit in LONGEST_FIRST else len(LONGEST_FIRST)
        return place, not unit.startswith("tests/flow/")

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = unit_of
    return scheduling


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_shop(tmp_path / "shop", num_products=7)
    return tmp_path


@pytest.fixture
def fit(shop: Path) -> Callable[..., Run]:
    """Train in this process and return the run."""
    return functools.partial(train_on_shop, shop)


@pytest.fixture(scope="module")
def fit_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Do as `fit` does, once a module for the same options: for tests that only read the run."""
    folder = tmp_path_factory.mktemp("once")
    write_shop(folder / "shop", num_products=7)
    return functools.cache(functools.partial(train_on_shop, folder))


def train_on_shop(folder: Path, *overrides: str) -> Run:
    config = compose("train", small(folder, *overrides))
    train(config)
    return identify(config)[0]
