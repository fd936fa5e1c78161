"""What tests of the campaign share: uninterrupted runs, one for each number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.campaign.bench import Bench
from tests.campaign.preparation import Prepared, make_prepared
from tests.campaign.processes import EntryPoint
from tests.campaign.search import Shop, make_shop
from tests.campaign.starved import small_disk
from tests.campaign.sweeps import WholeSweep, sweep_whole
from tests.campaign.training import WholeRun, run_whole

Whole = Callable[[str], WholeRun]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    EntryPoint.kill_started()


@pytest.fixture(scope="session")
def whole_of(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    shop, found = tmp_path_factory.mktemp("killed"), {}

    def get(place: str) -> WholeRun:
        key = place.split(",")[0]
        if key not in found:
            found[key] = run_whole(shop / key.replace(" ", "-"), key)
        return found[key]

    return get


@pytest.fixture(scope="session")
def search_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_prepared(tmp_path_factory.mktemp("preparation"))


@pytest.fixture(scope="session")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> WholeSweep:
    return sweep_whole(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A shop on a small disk of its own, where that may be mounted."""
    folder = tmp_path_factory.mktemp("bench")
    with small_disk(folder / "disk") as is_mounted:
        yield Bench(folder / "disk", folder / "states", is_mounted)
