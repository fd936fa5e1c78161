"""The evaluation of a checkpoint, or of a model that was never trained, on the data of its run or on others."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import build, build_matcher
from mim_lightning.data_config import build_preparation
from mim_lightning.expected_types import validate_arguments
from mim_lightning.io.locks import WaitTimeoutError, describe_holder, lock
from mim_lightning.launch import choose_precision, is_launched, set_up_process
from mim_lightning.run import Run
from mim_lightning.set_name import name_set
from mim_lightning.stored_config import data_of, data_versions_of
from mim_lightning.train_validation import validate_seed

if TYPE_CHECKING:
    from lightning import Trainer

    from mim_lightning.lit.callbacks.evaluation_parts import EvaluationParts
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.model.checkpoint import TrainedMatcher
    from mim_lightning.model.compatibility import CrossResult
    from mim_lightning.types import RetrievalReport

PARTS_FOLDER = ".scratch-embedded"  # in the output, while an evaluation runs


@dataclass(frozen=True)
class CheckpointEvaluation:
    """One pass over all rows.

    Args:
        config: of the run, with what the evaluation changed.
        fingerprint: of the weights, where it takes all processes to compute it.
        parts: files of what is embedded, which are needed until the results are written.
    """

    title: str
    checkpoint: str
    results: dict[str, float]
    model: TrainedMatcher
    config: dict[str, Any]
    fingerprint: str | None
    trainer: Trainer
    datamodule: MatchDataModule
    parts: EvaluationParts | None
    # fingerprints of the models that embedded queries and products, if they are two
    models: tuple[str, str] | None = None
    cross: tuple[CrossResult, ...] = ()

    def record_gallery(self) -> Iterator[str]:
        """Write into the checkpoint what its queries find in a former model's gallery, and yield it as lines.

        Raises:
            ValueError: nothing was compared, its run is training, or it is of another model by now.
        """
        from mim_lightning.model.checkpoint import store_gallery
        from mim_lightning.model.compatibility import deciding_result

        if self.models is None:
            return
        new, former = self.models
        if not self.cross:
            raise ValueError("gallery_checkpoint: no query was ranked by both models: nothing was compared")
        path = Path(self.checkpoint).absolute()
        run = Run(path.parent.parent.name, path.parent.parent)
        try:
            with lock(run.lock_path, timeout=0, removes=True) if run.config_path.is_file() else nullcontext():
                store_gallery(path, former, self.cross, new)
        except WaitTimeoutError:
            raise ValueError(
                f"{self.checkpoint}: {describe_holder(run.lock_path)} is training its run; evaluate it when that ends"
            ) from None
        yield from map(str, self.cross)
        for gallery in dict.fromkeys(result.gallery for result in self.cross):
            decides = deciding_result(self.cross, gallery)
            assert decides is not None
            may = f"may not ({decides.objection})" if decides.objection else "may"
            yield f"{self.checkpoint} {may} search an index of '{gallery}' of {former}, by {decides.direction}"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.trainer.is_global_zero

    def save(self, folder: Path) -> None:
        """Write results, record, page and image of hits; where the disk is full, in the room of the parts."""
        if self.parts is not None and not self.parts.is_on:  # they could not be written: room is short
            self.parts.remove()
        try:
            self._write(folder)
        except OSError as error:
            if self.parts is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.parts.remove()
            self._write(folder)
        if self.parts is not None:
            self.parts.remove()

    def _write(self, folder: Path) -> None:
        from mim_lightning.lit.evaluation import save_evaluation

        parts = self.trainer, self.model.matcher, self.datamodule, self.config
        save_evaluation(*parts, folder, self.model.fingerprint, self.fingerprint)
        Run(self.config["run"]["id"], folder).write_results(self.results)


def evaluate_checkpoint(config: dict[str, Any]) -> CheckpointEvaluation:
    """Evaluate on the devices of `trainer`: every process that takes part calls it.

    Args:
        config: as of conf/evaluate.yaml.
    """
    from mim_lightning.lit.callbacks.evaluation_parts import EvaluationParts
    from mim_lightning.lit.callbacks.retrieval_eval import find_retrieval_eval
    from mim_lightning.lit.console import ProgressBar
    from mim_lightning.lit.evaluation import evaluate_module, flatten
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.trainer import ask_first, keep_batches
    from mim_lightning.metric_names import whole_name
    from mim_lightning.model.compatibility import METRIC, cross_directions, join_models
    from mim_lightning.model.fingerprint import fingerprint
    from mim_lightning.model.sharding import is_sharded

    set_up_process(config, config["trainer"]["accelerator"])
    model = _load_model(config)
    former, models = _load_former(config), None
    if former is not None:
        models = model.fingerprint, former.fingerprint
        joined = join_models(model.matcher, former.matcher)
        model = replace(model, matcher=joined, fingerprint=fingerprint(joined))
    matcher, trained, data = model.matcher, model.config, _data_of(config, model.config)
    # without data of its own, an evaluation repeats that of the run: in the versions that the run read
    versions = None if config.get("data") else {"main": 1, **data_versions_of(trained)}
    # the process that launched this one has prepared the data
    built = {**data, "source": None} if is_launched() else data
    datamodule = build(built, specs=matcher.input_specs(), versions=versions)
    datamodule.evaluated.as_one_process = True
    directions = {**(trained.get("directions") or {}), **(config["directions"] or {})}
    monitor = config["monitor"] or trained.get("monitor")
    if former is not None:
        directions = cross_directions(directions, matcher)
        if not any(f"/{name}/" in str(monitor) for name in directions):
            monitor = f"val/{next(iter(directions))}/{METRIC}"
    changed = {"directions": directions, "monitor": monitor}
    callback = trained["callbacks"].get("retrieval_eval")
    if callback is None:
        raise ValueError(f"{config['checkpoint']}: callbacks.retrieval_eval: is missing, nothing is evaluated")
    if config["whole_gallery"]:
        callback = {**callback, "num_distractors": None}
        changed["monitor"] = whole_name(str(changed["monitor"]))
    elif former is not None and callback.get("num_distractors") is not None:
        raise ValueError("gallery_checkpoint: compares whole galleries, not samples of them; give whole_gallery=true")
    if config["widths"] is not None:
        callback = {**callback, "widths": config["widths"]}
    precision = config["trainer"]["precision"]
    as_trained = (trained.get("trainer") or {}).get("precision") if precision == "auto" else precision
    options = {**config["trainer"], "precision": as_trained}
    callbacks, parts = [build({**callback, **changed}), ProgressBar()], None
    if config["output"] and config["save_interval"] is not None:
        facts = {"fingerprint": model.fingerprint, "precision": as_trained}
        parts = EvaluationParts(Path(config["output"]) / PARTS_FOLDER, facts, config["save_interval"])
        callbacks.append(parts)
    trainer = build(options, callbacks=callbacks, logger=False)
    keep_batches(trainer)
    reports = evaluate_module(trainer, MatchModule(matcher), datamodule)
    # every process brings its part of sharded weights
    found = fingerprint(matcher, like=model.fingerprint) if config["output"] and is_sharded(matcher) else None
    run_config = {**trained, **changed, "data": data}
    run_config["callbacks"] = {**trained["callbacks"], "retrieval_eval": callback}
    title = f"{config['checkpoint'] or trained['run']['id']} ({model.fingerprint})"
    width_reports = find_retrieval_eval(trainer).width_reports
    # by one process: it reads the facts of all queries, from every shard
    results = ask_first(trainer.strategy, lambda: flatten(reports, datamodule, width_reports), may_take_hours=True)
    cross = () if former is None else _compare_galleries(reports, directions, data)
    made = title, str(config["checkpoint"]), results, model, run_config, found, trainer, datamodule, parts
    return CheckpointEvaluation(*made, models, cross)


def _compare_galleries(
    reports: Mapping[str, RetrievalReport], directions: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]
) -> tuple[CrossResult, ...]:
    """Compare directions with those of the former model's own queries, over the queries that both count."""
    from mim_lightning.metric_names import whole_name
    from mim_lightning.metrics.intervals import paired_difference
    from mim_lightning.model.compatibility import FORMER, METRIC, CrossResult

    found = []
    for name, report in reports.items():
        own = reports.get(f"{name}_{FORMER}")
        metric = next((key for key in report.scores if whole_name(key) == METRIC), None)
        if own is None or metric is None:
            continue
        rows = {key: row for row, key in enumerate(own.hits.query_keys.tolist())}
        both = [(row, rows[key]) for row, key in enumerate(report.hits.query_keys.tolist()) if key in rows]
        if not both:
            continue
        mine, others = (list(part) for part in zip(*both, strict=True))
        left, right = report.scores[metric][mine].numpy(), own.scores[metric][others].numpy()
        difference = paired_difference(left, right, report.cluster_keys[mine].numpy())
        numbers = float(left.mean()), float(right.mean()), float(difference.low), float(difference.high)
        ends = directions[name]
        place = str(data["name"]), str(data["val_split"])
        found.append(CrossResult(name, ends["query"], ends["gallery"], metric, *numbers, len(both), *place))
    return tuple(found)


def _load_former(config: Mapping[str, Any]) -> TrainedMatcher | None:
    """Return the model of `gallery_checkpoint`.

    Raises:
        ValueError: it cannot be loaded, or there is no checkpoint to compare it with.
    """
    from mim_lightning.model.checkpoint import load_matcher

    if config["gallery_checkpoint"] is None:
        return None
    if not config["checkpoint"]:
        raise ValueError("gallery_checkpoint: needs checkpoint=<file>, the model that embeds the queries")
    return load_matcher(config["gallery_checkpoint"])


def prepare_evaluation(config: dict[str, Any]) -> None:
    """Prepare the data for processes to launch, which would not wait for hours.

    The model, which they load, is loaded here only where a source is validated.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.data.preparation.prepared import is_prepared
    from mim_lightning.model.checkpoint import read_config
    from mim_lightning.types import specs_by_field

    if not config["checkpoint"]:
        validate_untrained(config)
    data = _data_of(config, read_config(config["checkpoint"]) if config["checkpoint"] else config)
    parts = build_preparation(data)
    is_validated = parts.source is not None and isinstance(parts.folder, Path) and not is_prepared(parts.folder)
    specs = specs_by_field(_load_model(config).matcher.input_specs()) if is_validated else None
    prepare_data(parts, write_validation_report, specs=specs, needed=(data["val_split"],))


def _data_of(config: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the data to evaluate on."""
    from mim_lightning.lit.datamodule import MatchDataModule

    data = config.get("data") or data_of(trained, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    return {**data, "val_split": config["split"] or data["val_split"]}


def _load_model(config: Mapping[str, Any]) -> TrainedMatcher:
    """Return the model of an evaluation, of its checkpoint or untrained, with the config of its run.

    Raises:
        ValueError: the checkpoint cannot be loaded, or its model is given twice; without one, see `_build_untrained`.
    """
    from mim_lightning.model.checkpoint import load_matcher

    if not config["checkpoint"]:
        return _build_untrained(config)
    for group in ("encoder", "model"):
        if config.get(group):
            raise ValueError(f"{group}: the checkpoint has its own; leave out one of the two")
    return load_matcher(config["checkpoint"])


def _build_untrained(config: Mapping[str, Any]) -> TrainedMatcher:
    """Return the model that a run would start with, with the config that the run would have.

    Args:
        config: of an evaluation without a checkpoint.

    Raises:
        ValueError: the config lacks an encoder, a model or data.
    """
    from lightning import seed_everything

    from mim_lightning.model.checkpoint import TrainedMatcher
    from mim_lightning.model.fingerprint import fingerprint

    validate_untrained(config)
    validate_seed(config["seed"])
    seed_everything(config["seed"], workers=True, verbose=False)
    evaluation = {"_target_": "mim_lightning.lit.RetrievalEval"}
    evaluation |= {key: config[key] for key in ("directions", "monitor")}
    run_config = {
        **config,
        "trainer": {**config["trainer"], "precision": choose_precision(config["trainer"])},
        "callbacks": {"retrieval_eval": evaluation},
        "run": {"id": f"{config['model']['name']}-{name_set(config['data'])}-untrained"},
    }
    matcher = build_matcher(config)
    return TrainedMatcher(matcher, run_config, fingerprint(matcher))


def validate_untrained(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an evaluation without a checkpoint that lacks encoder, model or data."""
    for group, example in (("encoder", "clip_vit_b32"), ("model", "3tower"), ("data", "manifest")):
        if not config.get(group):
            raise ValueError(
                f"checkpoint: needs a value; give checkpoint=<file>, or {group}={example} and so on for a model that "
                "was never trained: encoder, model and data"
            )
