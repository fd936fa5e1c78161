"""How many processes a run starts, and in which precision."""

import pytest

from mim_lightning import launch

TRAINER = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "precision": "auto"}


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("gpus", "change", "expected"),
    [
        (0, {}, 0),
        (0, {"devices": 2}, 2),
        (0, {"devices": "auto"}, 0),
        (8, {"devices": "auto"}, 8),
        (8, {"devices": -1}, 8),
        (8, {"devices": [0, 3]}, 2),
        (1, {"devices": "auto"}, 0),
        (8, {"devices": "auto", "accelerator": "cpu"}, 0),
        (8, {"devices": 8, "num_nodes": 2}, 0),  # several machines: the user's launcher starts them
    ],
)
def test_number_of_processes(gpus: int, change: dict, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: gpus)
    assert launch.num_processes_to_launch(TRAINER | change) == expected


@pytest.mark.parametrize("name", launch.LAUNCHED)
def test_a_launched_process_launches_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert launch.num_processes_to_launch(TRAINER | {"devices": 8}) == 0


@pytest.mark.parametrize(
    ("gpus", "change", "expected"),
    [
        (0, {}, "32-true"),
        (1, {}, "bf16-mixed"),
        (1, {"accelerator": "cpu"}, "32-true"),
        (0, {"precision": "16-mixed"}, "16-mixed"),
    ],
)
def test_precision(gpus: int, change: dict, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: gpus)
    assert launch.choose_precision(TRAINER | change) == expected
