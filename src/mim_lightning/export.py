"""mim export checkpoint=<path> output=<folder> [onnx=true]: one folder for inference.

It holds safetensors, preprocessing, tokenizers, fingerprint and model card; `push_to_hub=<user>/<repo>` publishes it.
What rounded weights cost is measured on the validation split, where the data are available. The folder of
format=sentence_transformers is loaded by that library, and needs nothing of this one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.artifact_paths import INDEX_CARD, validate_checkpoint
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import run_entry_point
from mim_lightning.config import build
from mim_lightning.expected_types import validate_arguments
from mim_lightning.next_command import folder_beside, print_next
from mim_lightning.stored_config import data_of

if TYPE_CHECKING:
    from mim_lightning.inference.export_format import ExportFacts
    from mim_lightning.inference.export_writer import ReferenceData
    from mim_lightning.inference.model_card import Evaluation, Terms
    from mim_lightning.model.checkpoint import TrainedMatcher

SENTENCE_TRANSFORMERS = "sentence_transformers"
FORMATS = ("mim_lightning", SENTENCE_TRANSFORMERS)
VERBATIM_KEYS = ("checkpoint", "output", "evaluation", "credits")


def main() -> None:
    run_entry_point("export", export, VERBATIM_KEYS)


def export(config: dict[str, Any]) -> Path:
    """Write the folder, upload it if `push_to_hub` names a place, and return its path."""
    _validate_format(config)
    validate_checkpoint(config["checkpoint"])
    from mim_lightning.data.loading.worker_processes import killed_workers_named
    from mim_lightning.inference.export_writer import export_model, validate_output
    from mim_lightning.inference.hub import push, validate_repo
    from mim_lightning.inference.model_card import Terms, find_evaluation
    from mim_lightning.model.checkpoint import load_matcher

    checkpoint, output, repo = Path(config["checkpoint"]), Path(config["output"]), config["push_to_hub"]
    validate_output(output)
    terms = Terms(config["license"], config["credits"])
    if repo:
        validate_repo(repo, f"push_to_hub={repo}")
    trained = load_matcher(checkpoint)
    evaluated = Path(config["evaluation"]) if config["evaluation"] else None
    evaluation = find_evaluation(checkpoint, evaluated, trained.fingerprint)
    if config["format"] == SENTENCE_TRANSFORMERS:
        _export_for_sentence_transformers(trained, output, evaluation, terms, config["towers"])
        if repo:
            print(f"pushed: {push(output, repo, config['private'])}")
        return output
    options = {key: config[key] for key in ("precision", "onnx", "device")}
    data = _open_data(config.get("data"), trained, checkpoint)
    with killed_workers_named():
        facts, loss = export_model(trained, output, data, evaluation, terms, **options)
    print(f"{output}: model {facts.fingerprint}, {facts.dimension} dimensions, {facts.precision}")
    for direction, metrics in loss.recall.items() if loss is not None else ():
        changes = ", ".join(f"{name} {before:.3f} -> {after:.3f}" for name, (before, after, _) in metrics.items())
        print(f"  {direction}: {changes}")
    for part in facts.onnx.values():
        print(f"  {part['file']}: smallest cosine to PyTorch {part['min_cosine']:.6f}")
    if repo:
        print(f"pushed: {push(output, repo, config['private'])}")
    _print_next(checkpoint, output, facts)
    return output


def _print_next(checkpoint: Path, output: Path, facts: ExportFacts) -> None:
    """Print the command that serves the index of the run with the export, or that builds one with it."""
    from mim_lightning.search.index.factory import read_index_card
    from mim_lightning.search.searcher import is_own_index

    index, is_own = folder_beside(checkpoint, "index"), False
    with suppress(ValueError, OSError):  # the export is written, whatever became of the index
        is_own = (index / INDEX_CARD).exists() and is_own_index(facts.fingerprint, read_index_card(index))
    if is_own:
        print_next("serve", f"index={index}", f"checkpoint={output}", *["runtime=onnx"] * bool(facts.onnx))
    else:
        print_next("build_index", f"checkpoint={output}", f"output={folder_beside(checkpoint, f'index-{output.name}')}")


def _validate_format(config: dict[str, Any]) -> None:
    if config["format"] not in FORMATS:
        raise ValueError(f"format={config['format']}: there are {' and '.join(FORMATS)}")
    is_ours = config["format"] != SENTENCE_TRANSFORMERS
    if is_ours and config["towers"] is not None:
        raise ValueError(f"towers={config['towers']}: goes with format={SENTENCE_TRANSFORMERS}; {FORMATS[0]} has all")
    if not is_ours and (config["onnx"] or config["precision"] != "float32"):
        wrong = "onnx=true" if config["onnx"] else f"precision={config['precision']}"
        raise ValueError(f"{wrong}: goes with format={FORMATS[0]}; {SENTENCE_TRANSFORMERS} has float32 weights alone")
    if not is_ours and (config.get("data") or config["device"] not in ("auto", "cpu")):
        wrong = f"data={config['data']['name']}" if config.get("data") else f"device={config['device']}"
        raise ValueError(
            f"{wrong}: goes with format={FORMATS[0]}; towers for {SENTENCE_TRANSFORMERS} are compared on the CPU, "
            "with inputs made up for it"
        )


def _export_for_sentence_transformers(
    trained: TrainedMatcher, output: Path, evaluation: Evaluation | None, terms: Terms, towers: list[str] | None
) -> None:
    from mim_lightning.inference.sentence_transformers import export_for_sentence_transformers

    written = export_for_sentence_transformers(trained, output, evaluation, terms, towers)
    print(f"{output}: model {written.facts.fingerprint} for SentenceTransformer, {written.facts.dimension} dimensions")
    for name, difference in written.differences.items():
        tasks = ", ".join(f"{task} {modality}" for (task, modality), tower in written.routes.items() if tower == name)
        print(f"  {name}: {tasks or f'task={name}'}; largest difference to PyTorch {difference:.1e}")


def _open_data(named: dict[str, Any] | None, trained: TrainedMatcher, checkpoint: Path) -> ReferenceData:
    """Return the batches of `named` data, or of the checkpoint's own if they are where they were."""
    from mim_lightning.inference.export_writer import ReferenceData
    from mim_lightning.lit.datamodule import MatchDataModule

    data = named or data_of(trained.config, checkpoint)
    validate_arguments(MatchDataModule, data, "data" if named else f"{checkpoint}: data")
    datamodule = build({**data, "distractors": None}, specs=trained.matcher.input_specs())
    if named:
        datamodule.prepare_data()
    else:
        try:
            _ = datamodule.opened.catalog
        except ValueError:
            return ReferenceData(None, f"the data of its training ({data['name']}) are not available")
    return ReferenceData(datamodule.val_dataloader())


make_callable(__name__, export, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
