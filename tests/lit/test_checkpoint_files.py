"""A checkpoint is the former one or the new one, wherever the system's temporary folder is, and never holds NaN."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mim_lightning.lit.checkpoint_files import WholeCheckpointIO
from mim_lightning.lit.module import refuse_not_finite

CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}


def test_it_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    loaded = WholeCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["epoch"] == 3 and torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])  # type: ignore[index]


def test_a_disk_that_fills_up_keeps_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(CONTENT, path)
    former = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        WholeCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == former and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    refuse_not_finite(model, "at step 1")
    model[0].weight.data[1, 1] = bad  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"'0\.weight' is not finite at step 2"):
        refuse_not_finite(model, "at step 2")


def test_a_mask_may_hold_infinity_but_statistics_no_nan() -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([float("-inf")]))
    refuse_not_finite(model, "at step 1")
    model.running_mean.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="'running_mean' is not finite"):
        refuse_not_finite(model, "at step 1")


def test_weights_are_refused_in_all_processes_where_one_has_no_numbers() -> None:
    with pytest.raises(ValueError, match="a tensor of another process is not finite at step 1"):
        refuse_not_finite(nn.Linear(2, 2), "at step 1", agree=lambda own: False)
    model, given = nn.Linear(2, 2), []
    model.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="'weight' is not finite"):
        refuse_not_finite(model, "at step 1", agree=lambda own: bool(given.append(own)))  # type: ignore[func-returns-value]
    assert given == [False]
