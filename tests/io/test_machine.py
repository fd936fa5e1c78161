"""The memory that control groups leave to a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim_lightning.io import machine


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": "3000", "memory.max": "9000"}, 3000),
        ("0::/job/step", {"job/step/memory.max": "2000", "job/memory.max": "3000"}, 2000),
        ("0::/host/path\n", {"memory.max": "4000"}, 4000),
        ("0::/", {"memory.max": "5000"}, 5000),
        ("5:cpu,memory:/job\n1:name=x:/y", {"memory/job/memory.limit_in_bytes": "6000"}, 6000),
        ("", {"memory/memory.limit_in_bytes": "7000"}, 7000),
    ],
)
def test_the_least_limit_of_all_groups_counts(
    own: str, limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    assert machine.memory_bytes() == expected


def test_without_control_groups_all_of_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    assert machine.memory_bytes() > 1 << 28
