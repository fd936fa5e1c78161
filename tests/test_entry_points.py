"""What an entry point costs before there is work to do: help and a mistake in a config import no vendor of models."""

import subprocess
import sys

ARGUMENTS = {  # of each entry point, one help of Hydra's for all that have the same
    "train": ("--help", "embed_dim=abc"),
    "evaluate": ("embed_dim=abc",),
    "prepare": ("engine=abc",),
    "search.__main__": ("modle=2tower",),
    **dict.fromkeys(("build_index", "calibrate", "embed", "export", "mine", "serve", "ab_report"), ()),
    **dict.fromkeys(("compare", "plot", "runs", "tune_fusion", "tune_index", "wandb_workspace"), ("--help",)),
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
        sys.argv = [name, argument]
        with contextlib.suppress(SystemExit):
            main()
    found = {HEAVY} & {{module.split(".")[0] for module in sys.modules}}
    assert not found, (name, found)
"""


def test_help_and_mistakes_import_nothing_heavy() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("error: ") == 4, ended.stderr
    assert ended.stdout.count("show this help message") == 6 and "Groups (group=option)" in ended.stdout
