"""What an entry point costs before there is work to do: help, mistakes and finished runs import no vendor of models."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mim_lightning.run import Run
from tests.shop import small

NOWHERE = "checkpoint=/nowhere/best.ckpt"
ARGUMENTS = {  # of each entry point, one help of Hydra's for all that have the same
    "train": ("--help", "embed_dim=abc", "data=shards data.folder=/nowhere"),
    "evaluate": ("embed_dim=abc", "split=val", NOWHERE, f"gallery_{NOWHERE}"),
    "prepare": ("engine=abc",),
    "build_index": (f"{NOWHERE} output=a", f"{NOWHERE} output=/nowhere update=true", "output=/nowhere delete=[a]"),
    "calibrate": ("index=/nowhere",),
    "embed": (f"{NOWHERE} output=a",),
    "export": (f"{NOWHERE} output=a",),
    "mine": (f"{NOWHERE} index=/nowhere output=a",),
    "search.__main__": ("modle=2tower", "index=/nowhere text=a"),
    "serve": ("index=/nowhere", "index=http://host:19530 arms={a:{checkpoint:/nowhere}}"),
    "ab_report": (),
    "compare": ("--help", "/nowhere/a /nowhere/b"),
    "plot": ("--help", "/nowhere --output a"),
    "runs": ("--help", "/nowhere"),
    "tune_fusion": ("--help", "/nowhere"),
    "tune_index": ("--help", "/nowhere"),
    "wandb_workspace": ("--help",),
}
HEAVY = {
    *("torch", "lightning", "timm", "transformers", "open_clip", "faiss", "pyarrow", "optuna", "gradio", "matplotlib"),
}
CODE = f"""
import contextlib, importlib, sys
from hydra.core.global_hydra import GlobalHydra
for name, arguments in {ARGUMENTS}.items():
    main = importlib.import_module(f"mim_lightning.{{name}}").main
    for argument in arguments:
        GlobalHydra.instance().clear()
        sys.argv = [name, *argument.split()]
        with contextlib.suppress(SystemExit):
            main()
        found = {HEAVY} & {{module.split(".")[0] for module in sys.modules}}
        assert not found, (name, argument, found)
"""
FINISHED = f"""
import sys
from mim_lightning.train import main
main()
found = {HEAVY - {"pyarrow"}} & {{module.split(".")[0] for module in sys.modules}}
assert not found, found
"""


def test_help_and_mistakes_import_nothing_heavy() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    mistakes = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    num_mistakes = sum(argument != "--help" for arguments in ARGUMENTS.values() for argument in arguments)
    assert len(mistakes) == num_mistakes == len(ended.stderr.splitlines()), ended.stderr
    assert sum("/nowhere" in line for line in mistakes) == num_mistakes - 5, ended.stderr
    assert ended.stdout.count("show this help message") == 6 and "Groups (group=option)" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_a_finished_run_imports_no_vendor_of_models(fit: Callable[..., Run], shop: Path) -> None:
    words = ["model=2tower", "trainer.max_epochs=1", "trainer.num_sanity_val_steps=0"]
    run = fit(*words)
    # auto: which devices there are is for torch to say, and need not be known
    same = [word.replace("trainer=cpu", "trainer=auto") for word in small(shop, *words)]
    ended = subprocess.run([sys.executable, "-c", FINISHED, *same], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"run was finished before; results: {run.folder}" in ended.stdout
