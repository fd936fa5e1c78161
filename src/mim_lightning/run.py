"""A run: a stable id computed from what decides its result, and its folder.

The same config gives the same id on any machine, so running it again finds its checkpoint, W&B run and results.
In the folder, in the order in which they are written:

    config.yaml                          at the start: the resolved config
    command.txt                          at the start: the command line, for a shell; not of a call from Python, of a
                                         launcher's processes, or of a search
    csv/                                 every `trainer.log_every_n_steps` steps and every epoch: logged values
    browser/                             every validation: ranks and hits of the tracked queries, and their pictures
    checkpoints/best.ckpt, last.ckpt     after every validation; last.ckpt also by time (`callbacks.preemption`), every
                                         `callbacks.last.every_n_train_steps` steps, where a signal stops the run, and
                                         at the end of a run without a validation
    evaluation/, report.html, hits.png   at the end: results of every query, embeddings, a page, an image
    negatives/                           where hard negatives are mined: their table, after every mining
    failed.json, pruned.json             in the place of results: why the last start failed or was pruned
    results.json                         last: its presence says that the run is finished, or (with
                                         `stopped_after_seconds`) that `trainer.max_time` has ended it early
    .lock                                held while a process trains it

On resume, by the same command: `train.train` returns the results of a finished run, unless it was ended early and has
more time now; else `find_resumable` chooses the
last checkpoint, or the best where the last is damaged, and `init_from` is skipped; `MatchDataModule` restores the
position in the data, and refuses another order; `lit.Preemption` first makes up for a validation that is due.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mim_lightning.config import load_stored_config
from mim_lightning.data_config import describe_data, describe_source
from mim_lightning.former_names import to_first
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.atomic import atomic_write, remove_abandoned, restore_former
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file
from mim_lightning.set_name import name_set
from mim_lightning.train_validation import parse_max_time

if TYPE_CHECKING:
    from mim_lightning.inference.model import LoadedModel

# what changes where a run happens or what is shown of it, not its result
NOT_IN_RUN_ID = ("run", "paths", "logger", "trial", "reuse_memory", "float32_matmul_precision")
NOT_IN_RUN_ID_OF = {
    "trainer": (
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "precision",
        "log_every_n_steps",
        "default_root_dir",
        "max_time",  # ends a run early, which then goes on with more time
    ),
    "model": ("compile",),
    "encoder": ("training",),  # optim, loss and trainer have its values
    # the data themselves are described instead
    "data": (
        *("folder", "source", "validation", "distractors", "mixture", "vectors", "num_workers", "eval_batch_size"),
        *("cache", "feature_cache"),
        *("on_corrupt_sample", "max_corrupt_samples"),  # a run that met a damaged shard goes on under its id
    ),
    "callbacks": (
        "tracked_queries",
        "best",
        "last",
        "preemption",
        "training_alarms",
        "throughput",
        "shuffle_quality",
        "corrupt_samples",
        "learning_rate",
        "progress_bar",
        "terminate_on_nan",
        "optuna_pruning",
    ),
}
# the same by dotted key, but for what decides: run ids describe `data.source`, `data.mixture` and `data.vectors`
PLACEMENT_KEYS = (
    *NOT_IN_RUN_ID,
    *(
        f"{section}.{key}"
        for section, keys in NOT_IN_RUN_ID_OF.items()
        for key in keys
        if key not in ("source", "mixture", "vectors")
    ),
)
PENDING_ID = "<run-id>"  # in conf/train.yaml, until the id is known
PENDING_SET = "<set>"  # in the run's name there, until the name of the data set is known


@dataclass(frozen=True)
class Run:
    """The id of a run, the paths of its files, and what they hold."""

    run_id: str
    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def command_path(self) -> Path:
        return self.folder / "command.txt"

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    @property
    def lock_path(self) -> Path:
        return self.folder / ".lock"

    @property
    def best_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def results(self) -> dict[str, float]:
        """The recorded result.

        Raises:
            ValueError: the run is not finished.
        """
        found = self.read_results()
        if found is None:
            raise ValueError(f"{self.folder}: the run is not finished; train it again with the same config, it resumes")
        return found

    @cached_property
    def model(self) -> LoadedModel:
        """The model of which the results are, for inference.

        Raises:
            ValueError: its checkpoint is missing or damaged.
        """
        from mim_lightning.inference.loading import load

        return load(self.checkpoint(load_stored_config(self.config_path)["results_from"]))

    def checkpoint(self, which: str) -> Path:
        """Return the checkpoint that results are to be of.

        Raises:
            ValueError: neither "best" nor "last".
        """
        places = {"best": self.best_checkpoint, "last": self.last_checkpoint}
        if which not in places:
            raise ValueError(f"results_from={which}: give best or last")
        return places[which]

    def read_results(self) -> dict[str, float] | None:
        """Return the recorded result, or None while the run is not finished."""
        if not self.results_path.exists():
            return None
        with errors_as_damaged_file(self.results_path, "remove it, and the run is evaluated again"):
            found: dict[str, float] = json.loads(self.results_path.read_text())
            if not found or not all(isinstance(value, int | float) for value in found.values()):
                raise ValueError("holds no results")
            return {_present_key(key): value for key, value in found.items()}

    def is_finished(self, max_time: str | Mapping[str, float] | None = None) -> bool:
        """Return whether there are results, other than those of a run that ended early and now has more time.

        Args:
            max_time: trainer.max_time.
        """
        results = self.read_results()
        if results is None or STOPPED_AFTER not in results:
            return results is not None
        limit = parse_max_time(max_time)
        return limit is not None and limit.total_seconds() <= results[STOPPED_AFTER]

    def write_results(self, results: Mapping[str, float]) -> None:
        # whole: the file's presence says that the run is finished
        with atomic_write(self.results_path) as partial:
            partial.write_text(json.dumps(dict(results), indent=2))


def _present_key(key: str) -> str:
    """Return a key of results.json under its present name: those of the model before training had another prefix."""
    return f"initial/{key.removeprefix('untouched/')}" if key.startswith("untouched/") else key


def identify(config: dict[str, Any]) -> tuple[Run, dict[str, Any], dict[str, Any] | None]:
    """Return the run of a config, the config with the run's id filled in, and its source's description.

    The description hashes whole tables: hand it to what prepares the data. It is None where there is no source, and in
    a launched process, whose data were prepared before it was started.

    Raises:
        ValueError: the data cannot be described, the run's name or id leads out of the folder of runs, or a given
            `run.id` belongs to another config.
    """
    section, description, accepted = config["run"], None, None
    if section["digest"] is None:  # else a launched process, with a config that was identified before
        description = describe_source(config["data"])
        digest, has_limit = _choose_digest(config, description)
        accepted = {digest, *_former_digest(config, description)}
        config = _replace(config, PENDING_SET, name_set(config["data"]))
        run_id = str(section["id"]) if section["id"] != PENDING_ID else _find_or_name(config, digest)
        config = _replace(config, PENDING_ID, run_id)
        config = {**config, "run": {**config["run"], "id": run_id, "digest": digest}}
        if has_limit:  # its command without the limit would start another run
            config["run"].pop("command", None)
    _validate_placement(config["run"])
    run = Run(config["run"]["id"], Path(config["run"]["folder"]))
    if accepted is not None:
        _validate_same_run(run, config, accepted)
    return run, config, description


def find_resumable(run: Run) -> Path | None:
    """Return the checkpoint that a run resumes from: the last, or the best where the last is damaged or missing.

    It reads the whole file: of several processes, ask the first alone.

    Raises:
        DamagedFileError: the last is damaged, and there is no other.
    """
    from mim_lightning.model.checkpoint import verify_checkpoint

    for path in (run.last_checkpoint, run.best_checkpoint):
        restore_former(path)  # the run's lock is held: nobody is writing it
    remove_abandoned(run.last_checkpoint.parent)
    if not run.last_checkpoint.exists():
        with suppress(DamagedFileError, FileNotFoundError):
            verify_checkpoint(run.best_checkpoint)
            print(f"there is no {run.last_checkpoint.name}: resumed from {run.best_checkpoint.name}", flush=True)
            return run.best_checkpoint
        return None
    try:
        verify_checkpoint(run.last_checkpoint)
    except DamagedFileError as error:
        with suppress(DamagedFileError, FileNotFoundError):
            verify_checkpoint(run.best_checkpoint)
            print(f"warning: {error}; resumed from {run.best_checkpoint.name}", file=sys.stderr, flush=True)
            return run.best_checkpoint
        raise DamagedFileError(
            error.path, error.reason, "there is no other to resume from; remove it to train from the start"
        ) from error
    return run.last_checkpoint


def _validate_placement(section: Mapping[str, Any]) -> None:
    """Check that name and id keep a run's folder below `paths.runs`."""
    for key in ("name", "id"):
        place = PurePath(str(section[key]))
        if not place.name or place.is_absolute() or ".." in place.parts:
            raise ValueError(f"run.{key}={section[key]}: names the run's folder below paths.runs; give a plain name")


def _validate_same_run(run: Run, config: Mapping[str, Any], accepted: Collection[str]) -> None:
    """Check that the run in a folder, if there is one, was started with one of the digests that are accepted."""
    if not run.config_path.exists():
        return
    with errors_as_damaged_file(run.config_path, "remove it, and the run goes on with the config of this command"):
        found = load_stored_config(run.config_path)
        if found["run"]["digest"] in accepted:
            return
        _relevant(found)
    wanted_keys, found_keys = _flat(_relevant(config)), _flat(_relevant(found))
    for key in sorted({*wanted_keys, *found_keys}):
        if wanted_keys.get(key) != found_keys.get(key):
            raise ValueError(
                f"run.id={run.run_id}: {run.folder} is another run, which differs first in {key}: "
                f"{found_keys.get(key)} there, {wanted_keys.get(key)} here"
            )
    raise ValueError(
        f"run.id={run.run_id}: {run.folder} is another run, of the same keys and data with other content; "
        "give another run.id, or remove that folder"
    )


def _find_or_name(config: Mapping[str, Any], digest: str) -> str:
    """Return the id of a run: its name and digest, or the id it had before its data set was renamed."""
    run_id = f"{config['run']['name']}-{digest}"
    folder = Path(config["run"]["folder"].replace(PENDING_ID, run_id))
    if folder.exists():
        return run_id
    found = sorted(path.parent.name for path in folder.parent.glob(f"*-{digest}/config.yaml"))
    return found[0] if found else run_id


def _choose_digest(config: Mapping[str, Any], description: Mapping[str, Any] | None) -> tuple[str, bool]:
    """Return the digest of a run, and whether it has the time limit in it, as those had whose folder is there yet."""
    digest, max_time = _digest(config, description), config["trainer"].get("max_time")
    if max_time is None or config["run"]["id"] != PENDING_ID:  # the folder of a given id says nothing of the digest
        return digest, False
    former = _digest(config, description, {"max_time": max_time})
    folders = Path(config["run"]["folder"].replace(PENDING_ID, f"*-{former}"))
    has_limit = any(folders.parent.glob(f"{folders.name}/config.yaml"))
    return (former, True) if has_limit else (digest, False)


def _former_digest(config: Mapping[str, Any], description: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the digest with the time limit of the run that has the given id: it was part of it once."""
    path = Path(config["run"]["folder"]) / "config.yaml"
    if config["run"]["id"] == PENDING_ID or not path.exists():
        return
    with suppress(ValueError, OSError), errors_as_damaged_file(path):  # reported when it is compared
        max_time = load_stored_config(path)["trainer"].get("max_time")
        if max_time is not None:
            yield _digest(config, description, {"max_time": max_time})


def _digest(
    config: Mapping[str, Any],
    description: Mapping[str, Any] | None,
    former_trainer: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    relevant_config = _relevant(config)
    relevant_config["trainer"] |= former_trainer
    # under the first name of every class: a later one must not lose the runs that are there
    relevant = {**to_first(relevant_config), "described_data": describe_data(config["data"], description)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    relevant = {key: value for key, value in config.items() if key not in NOT_IN_RUN_ID}
    for section, keys in NOT_IN_RUN_ID_OF.items():
        relevant[section] = {key: value for key, value in relevant[section].items() if key not in keys}
    if (relevant["data"].get("sampling") or {}).get("table"):  # described by its content, as other files are
        relevant["data"]["sampling"] = {**relevant["data"]["sampling"], "table": True}
    return _without_folders(relevant)


def _without_folders(value: Any, key: str = "") -> Any:
    """Cut the paths of pretrained weights to file names: folders differ between machines."""
    if isinstance(value, dict):
        return {name: _without_folders(part, name) for name, part in value.items()}
    return Path(value).name if key == "pretrained" and isinstance(value, str) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }


def _replace(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replace(part, old, new) for key, part in value.items()}
    return value.replace(old, new) if isinstance(value, str) else value
