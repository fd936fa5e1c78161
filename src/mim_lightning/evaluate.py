"""python -m mim_lightning.evaluate checkpoint=<path> [data=...]: retrieval numbers from a checkpoint file alone.

The model, its directions and, unless `data` is given, its data come from the config that the checkpoint
carries; the numbers are those of the training run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mim_lightning.config import build
from mim_lightning.door import run_door
from mim_lightning.whole_file import whole_file


def main() -> None:
    run_door("evaluate", evaluate)


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """Print a table, write results, record and picture into `output` if given, and return the flat results."""
    from mim_lightning.lit.console import ProgressBar, quieten
    from mim_lightning.lit.evaluation import evaluate_module, flatten, save_evaluation
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.report import print_run
    from mim_lightning.lit.trainer_options import check_trainer, keep_batches
    from mim_lightning.model.checkpoint import load_matcher

    quieten()
    if config["output"] and (Path(config["output"]) / "config.yaml").is_file():
        raise ValueError(
            f"output={config['output']}: is a run's own folder, whose results.json says that it is finished; "
            "give another folder"
        )
    check_trainer(config["trainer"], is_training=False)
    loaded = load_matcher(config["checkpoint"])
    trained = loaded.config
    data = config.get("data") or trained["data"]
    data = {**data, "val_split": config["split"] or data["val_split"]}
    datamodule = build(data, specs=loaded.matcher.input_specs())
    if config["trainer"]["devices"] != 1:
        raise ValueError(f"trainer.devices={config['trainer']['devices']}: evaluation runs on one device")
    options = dict(config["trainer"])
    if options["precision"] == "auto":
        options["precision"] = trained["trainer"]["precision"]
    trainer = build(options, callbacks=[build(trained["callbacks"]["retrieval_eval"]), ProgressBar()], logger=False)
    keep_batches(trainer)
    reports = evaluate_module(trainer, MatchModule(loaded.matcher), datamodule)
    results = flatten(reports)
    print_run(f"{config['checkpoint']} ({loaded.fingerprint})", results)
    if config["output"]:
        folder = Path(config["output"])
        save_evaluation(trainer, loaded.matcher, datamodule, {**trained, "data": data}, folder)
        with whole_file(folder / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=2))
        print(f"results, record and picture: {folder}")
    return results


if __name__ == "__main__":
    main()
