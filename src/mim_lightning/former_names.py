"""Former names of what a config says - keys, groups, options, values, classes - and the present ones.

A config that was stored, or written by hand, under former names means the same. Whatever reads a config from a file,
a command line or a user's YAML turns it into present names first; run ids are made from the first names, so that no
renaming loses a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_Found = TypeVar("_Found")
Report = Callable[[str, str], None]  # gets a former name, and the present one

# place of a key, in present names, and its former name -> present name; * is any name. Rows of all tables are added,
# never removed: stored configs hold the former names. Of several former names the first is the oldest.
FORMER_KEYS = {
    "arms.*.share": "traffic_fraction",
    "callbacks.divergence": "terminate_on_nan",
    "callbacks.pruning": "optuna_pruning",
    "callbacks.retrieval_browser": "tracked_queries",
    "callbacks.skipped_samples": "corrupt_samples",
    "data.cache.look_ahead": "prefetch_shards",
    "data.cache.max_bytes": "max_size",
    "data.check": "validation",
    "data.max_bad": "max_corrupt_samples",
    "data.mix": "mixture",
    "data.mixture.*.ids": "id_namespace",
    "data.mixture.*.share": "fraction",
    "data.num_lanes": "num_interleaved",
    "data.on_bad": "on_corrupt_sample",
    "data.order": "sampling",
    "data.protocol": "splits",
    "data.samples_per_epoch": "rows_per_epoch",
    "data.sampling.rows_per_product": "samples_per_product",
    "data.sampling.same_category": "same_category_fraction",
    "data.source.catalogue": "catalog",
    "data.source.download.wait": "backoff",
    "data.validation.also_bad": "treat_as_invalid",
    "data.validation.max_bad": "max_invalid",
    "data.validation.near_empty": "blank_image_fraction",
    "data.validation.on_bad": "on_invalid",
    "data.window": "shuffle_window_shards",
    "model.towers.*.frozen": "train",
    "schedule.final_share": "final_lr_fraction",
    "schedule.warmup_share": "warmup_fraction",
}
# keys that have their first name again
FIRST_AGAIN = ("data.rows_per_epoch",)
# the same at the top of one config: elsewhere such a key may be a user's own
FORMER_TOP_KEYS: dict[str, dict[str, str]] = {
    "train": {"report": "results_from"},
    "prepare": {"check": "validate_only", "force": "overwrite", "texts": "tokenizer"},
    "export": {"push": "push_to_hub"},
    "search": {"picture": "output_image"},
    "serve": {"events": "event_log", "page": "ui", "share": "traffic_fraction"},
    "ab_report": {"base": "baseline_rate", "events": "event_log", "shares": "traffic_fractions"},
}
# present key -> former value: present value
FORMER_VALUES: dict[str, dict[Any, Any]] = {
    "data.folder": {"${paths.data}/${.name}${.protocol.label}": "${paths.data}/${.name}${.splits.label}"},
    "data.mixture.*.id_namespace": {"own": "separate"},
    "data.on_corrupt_sample": {"fail": "raise"},
    "data.shards.layout": {"mixed": "shuffled", "product": "by_product"},
    "data.validation.on_invalid": {"fail": "raise", "skip": "drop"},
    # of `frozen`: in files, and on the command line
    "model.towers.*.train": {True: "frozen", False: "full", "true": "frozen", "false": "full"},
    **{
        f"{parent}directions.*.{key}": {"asked": "target", "shown": "reference"}
        for parent in ("", "callbacks.retrieval_eval.")
        for key in ("relevance", "leave_out")
    },
    "validate_only": {"always": False, "only": True},
}
# present group -> former option: present option
FORMER_OPTIONS = {
    "data/sampling": {"stream": "shuffled"},
    "data/splits": {"seen": "given", "disjoint": "product_disjoint"},
}
# key of training that came later -> the values, resolved or not, that mean what runs did before it: with one of them
# the key is left out of run ids, so that those runs are found
_LORA = {
    "_target_": "mim_lightning.model.LoraSettings",
    "rank": 16,
    "alpha": 32.0,
    "dropout": 0.0,
    "target_modules": None,
}
ADDED_KEYS: dict[str, tuple[Any, ...]] = {
    "callbacks.retrieval_eval.distractor_seed": (0,),
    "callbacks.retrieval_eval.num_distractors": (None,),
    "callbacks.retrieval_eval.storage_device": ("cpu", "device"),
    "callbacks.retrieval_eval.storage_dtype": ("float32",),
    "callbacks.retrieval_eval.widths": (None, "${oc.select:loss.widths,null}"),
    "data.augment.image_size": (None,),
    "data.compose": (None,),
    "data.reference_products": (False,),
    "data.vectors": ({}, None),
    "data.version": (None,),
    "encoder.text.length_buckets": tuple(range(1, 65)),  # rounding alone
    "model.towers.*.activation_checkpointing": (False, True),
    "model.lora": (_LORA,),
    "model.towers.*.encoder.length_buckets": tuple(range(1, 65)),
    "model.towers.*.lora": ("${model.lora}", _LORA),
    "loss.grades": (None,),
    "loss.popularity_correction": (False,),
    "loss.row_weights": (False,),
    "loss.scale": ("learned",),
    "loss.widths": (None,),
    "model.towers.*.num_trained_layers": (2,),
    "model.towers.*.train": ("full",),
    "optim.layer_decay": (None,),
    "optim.optimizer.fused": (None, False, True),  # rounding alone
    "step.micro_batch_size": (None,),
}
OWN = "mim_lightning."
# former `_target_` -> present: a package of ours and what it exports, so that files behind it may move
FORMER_TARGETS = {
    OWN + former: OWN + present
    for former, present in {
        "data.check.settings.CheckSettings": "data.ValidationSettings",
        "data.fetching.DownloadSettings": "data.DownloadSettings",
        "data.grouped.GroupedSettings": "data.GroupedSettings",
        "data.manifest.ManifestSource": "data.ManifestSource",
        "data.order.StreamSettings": "data.ShuffledSettings",
        "data.prepared.ShardSettings": "data.ShardSettings",
        "data.protocol.ProductDisjoint": "data.ProductDisjointSplits",
        "data.protocol.Seen": "data.GivenSplits",
        "data.shard_cache.CacheSettings": "data.CacheSettings",
        "data.sources.grocery.GrocerySource": "data.GrocerySource",
        "data.sources.hugging_face.HuggingFaceSource": "data.HuggingFaceSource",
        "data.sources.synthetic.SyntheticSource": "data.SyntheticSource",
        "data.sources.webdataset.WebDatasetSource": "data.WebDatasetSource",
        "data.transforms.Augment": "data.Augment",
        "data.weighted.WeightedSettings": "data.WeightedSettings",
        "data.writing.ray_cluster.RaySettings": "data.RaySettings",
        "encoders.hf_text.HfText": "encoders.HfText",
        "encoders.open_clip_towers.OpenClipImage": "encoders.OpenClipImage",
        "encoders.open_clip_towers.OpenClipText": "encoders.OpenClipText",
        "encoders.timm_image.TimmImage": "encoders.TimmImage",
        "encoders.tiny.TinyImage": "encoders.TinyImage",
        "encoders.tiny.TinyText": "encoders.TinyText",
        "lit.callbacks.divergence.StopDiverged": "lit.TerminateOnNaN",
        "lit.callbacks.pruning.TrialPruning": "lit.OptunaPruning",
        "lit.callbacks.retrieval_browser.RetrievalBrowser": "lit.TrackedQueries",
        "lit.callbacks.retrieval_eval.RetrievalEval": "lit.RetrievalEval",
        "lit.callbacks.skipped_samples.SkippedSamples": "lit.CorruptSamples",
        "lit.callbacks.throughput.Throughput": "lit.Throughput",
        "lit.console.ProgressBar": "lit.ProgressBar",
        "lit.csv_logger.RunCSVLogger": "lit.RunCSVLogger",
        "lit.datamodule.MatchDataModule": "lit.MatchDataModule",
        "lit.optim.warmup_constant": "lit.warmup_constant",
        "lit.optim.warmup_cosine": "lit.warmup_cosine",
        "losses.contrastive.info_nce": "losses.info_nce",
        "losses.contrastive.sigmoid": "losses.sigmoid",
        "model.tower.Tower": "model.Tower",
        "search.index.settings.IndexSettings": "search.IndexSettings",
        "sweep.callback.SweepLedger": "sweep.SweepLog",
        "data.CheckSettings": "data.ValidationSettings",
        "data.ProductDisjoint": "data.ProductDisjointSplits",
        "data.Seen": "data.GivenSplits",
        "data.StreamSettings": "data.ShuffledSettings",
        "lit.RetrievalBrowser": "lit.TrackedQueries",
        "lit.SkippedSamples": "lit.CorruptSamples",
        "lit.StopDiverged": "lit.TerminateOnNaN",
        "lit.TrialPruning": "lit.OptunaPruning",
        "sweep.SweepLedger": "sweep.SweepLog",
    }.items()
}
MAX_DEPTH = 1 + max(
    key.count(".") for key in (*FORMER_KEYS, *FORMER_VALUES, *ADDED_KEYS)
)  # of the keys in these tables
OVERRIDE = re.compile(r"(~|\+{0,2})([^-=@][^=@]*)(@[^=]*)?(?:=(.*))?", re.S)  # mark, key, package, value


@dataclass(frozen=True)
class _Names:
    """Tables from former names to present ones, or from present to first; places of keys are in present names."""

    keys: Mapping[str, str]
    values: Mapping[str, Mapping[Any, Any]]
    options: Mapping[str, Mapping[str, str]]
    targets: Mapping[str, str]
    is_backward: bool = False

    def key(self, place: Sequence[str]) -> tuple[str, str]:
        """Return the other name of a key, and its present name."""
        other = _look_up(self.keys, place) or place[-1]
        return other, place[-1] if self.is_backward else other


def _forward(name: str) -> _Names:
    return _Names({**FORMER_KEYS, **FORMER_TOP_KEYS.get(name, {})}, FORMER_VALUES, FORMER_OPTIONS, FORMER_TARGETS)


def _backward() -> _Names:
    keys = {**FORMER_KEYS, **FORMER_TOP_KEYS["train"]}
    rows = [(*place.rpartition("."), present) for place, present in reversed(keys.items())]
    inverted = {f"{parent}{dot}{present}": former for parent, dot, former, present in rows}
    inverted = {key: former for key, former in inverted.items() if key not in FIRST_AGAIN}
    values, options = ({key: _inverted(table) for key, table in t.items()} for t in (FORMER_VALUES, FORMER_OPTIONS))
    return _Names(inverted, values, options, _inverted(FORMER_TARGETS), is_backward=True)


def to_present(config: Mapping[str, Any], name: str = "train", report: Report | None = None) -> dict[str, Any]:
    """Return the plain containers of a config under present names; where a key has both, the former one prevails.

    Args:
        config: as composed, where present keys have their defaults, or as it was stored.
        name: of the config, the file in conf/.
        report: is called with every former name that was found and the present one.
    """
    return _renamed(config, (), _forward(name), report or _ignore)


def to_first(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training config that has present names as the first version had it: its names, without later keys."""
    return _renamed(_without_added(config, ()), (), _backward(), _ignore)


def present_overrides(overrides: Iterable[str], name: str = "train", report: Report | None = None) -> list[str]:
    """Return overrides, <key>=<value> or <group>=<option>, under present names."""
    return [_renamed_override(override, _forward(name), report or _ignore) for override in overrides]


def first_override(override: str) -> str:
    """Return an override of a training config that has present names under the first ones."""
    return _renamed_override(override, _backward(), _ignore)


def _without_added(value: Any, place: tuple[str, ...]) -> Any:
    """Remove added keys that change nothing, and sections that have no other key."""
    if isinstance(value, list):
        return [_without_added(part, (*place, "*")) for part in value]
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, part in value.items():
        inner = (*place, str(key))
        found = _look_up(ADDED_KEYS, inner)
        if found is not None and part in found:
            continue
        remaining = _without_added(part, inner)
        if remaining != {} or part == {}:
            kept[key] = remaining
    return kept


def _renamed(value: Any, place: tuple[str, ...], names: _Names, report: Report) -> Any:
    if isinstance(value, list):
        return [_renamed(part, (*place, "*"), names, report) for part in value]
    if not isinstance(value, Mapping):
        others: Mapping[Any, Any] = names.targets if place[-1] == "_target_" else _look_up(names.values, place) or {}
        if not isinstance(value, str | bool) or value not in others:
            return value
        shown = "" if place[-1] == "_target_" else f"{'.'.join(place)}="
        report(f"{shown}{value}", f"{shown}{others[value]}")
        return others[value]
    renamed: dict[str, Any] = {}
    for key, part in value.items():
        other, present = names.key((*place, str(key)))
        made = _renamed(part, (*place, present), names, report)
        if other != str(key):
            report(".".join((*place, key)), ".".join((*place, other)))
            renamed[other] = _merged(renamed.get(other), made)
        else:  # a former name of it may have come before
            renamed[key] = _merged(made, renamed[key]) if key in renamed else made
    return renamed


def _renamed_override(override: str, names: _Names, report: Report) -> str:
    parts = OVERRIDE.fullmatch(override)
    if parts is None:
        return override
    mark, key, package, value = parts.groups()
    place, new_key = _renamed_path(key, names)
    new_package = package and "@" + _renamed_path(package[1:], names)[1]
    others = names.options.get("/".join(place)) or _look_up(names.values, place)
    new_value = value and re.sub(r"[\w-]+", lambda word: _as_text((others or {}).get(word[0], word[0])), value)
    renamed = f"{mark}{new_key}{new_package or ''}" + (f"={new_value}" if value is not None else "")
    if renamed != override:
        report(override, renamed)
    return renamed


def _renamed_path(key: str, names: _Names) -> tuple[tuple[str, ...], str]:
    """Return the segments of a dotted key or of a group in present names, and the key under its other name."""
    place: tuple[str, ...] = ()
    parts = re.split(r"([./])", key)
    for idx in range(0, len(parts), 2):
        parts[idx], present = names.key((*place, parts[idx]))
        place = (*place, present)
    return place, "".join(parts)


def _look_up(table: Mapping[str, _Found], place: Sequence[str]) -> _Found | None:
    if len(place) > MAX_DEPTH:
        return None
    masked = [(*place[:idx], "*", *place[idx + 1 :]) for idx in range(1, len(place) - 1)]
    return next((table[key] for key in map(".".join, (place, *masked)) if key in table), None)


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {**under, **{key: _merged(under.get(key), part) for key, part in over.items()}}


def _inverted(table: dict[Any, Any]) -> dict[Any, Any]:
    return {present: former for former, present in reversed(table.items())}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _ignore(former: str, present: str) -> None:
    pass
