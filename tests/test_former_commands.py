"""Commands under their former names run and print the present one."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("former", "present"), [("report", "ab_report"), ("draw", "plot"), ("dashboard", "wandb_workspace")]
)
def test_a_former_command_runs(
    former: str, present: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(f"mim_lightning.{present}.main", lambda: calls.append(present))
    importlib.import_module(f"mim_lightning.{former}").main()
    assert calls == [present]
    assert capsys.readouterr().err == f"mim_lightning.{former} is now mim_lightning.{present}\n"
