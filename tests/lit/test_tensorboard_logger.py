"""A disk that is full under TensorBoard: an error that names the folder, and no call stack of its thread."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.lit import RunTensorBoardLogger

pytest.importorskip("tensorboard", reason="needs the extra: pip install 'mim-lightning[tensorboard]'")


def test_a_failed_write_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut(path: str, _: Any) -> None:
        Path(path).touch()
        fail()

    logger = RunTensorBoardLogger(str(tmp_path), name="tensorboard")
    logger.log_metrics({"loss": 1.0}, step=0)
    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.loggers.tensorboard.save_hparams_to_yaml", cut)
        with pytest.raises(OSError, match="No space left") as caught:
            logger.save()
    assert caught.value.filename == str(tmp_path / "tensorboard" / "version_0" / "hparams.yaml")
    assert not Path(caught.value.filename).exists(), "half-written"
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        for step in range(1, 100):  # the thread fails at some time after the first
            logger.log_metrics({"loss": 1.0}, step=step)
            time.sleep(0.01)
    assert caught.value.filename == str(tmp_path / "tensorboard")
    with pytest.raises(OSError, match="No space left"):
        logger.finalize("success")
    try:
        raise FloatingPointError("loss=nan")
    except FloatingPointError:
        logger.finalize("failed")
    with pytest.raises(OSError, match="No space left") as caught:
        _ = RunTensorBoardLogger(str(tmp_path), name="new").experiment
    assert caught.value.filename == str(tmp_path / "new")
    assert "Traceback" not in capfd.readouterr().err
