"""Classes that configs name as `_target_`, under their former names and the present ones.

A present name is a package of ours and what it exports: files behind it may move. A config that was stored or written
by hand under a former name means the same class, and gives the same run id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# former name -> present; of several former names of a class the first is the oldest. Rows are added, never removed:
# checkpoints hold the former names, and run ids are made from the oldest.
FORMER_TARGETS = {
    "mim_lightning.data.check.settings.CheckSettings": "mim_lightning.data.CheckSettings",
    "mim_lightning.data.fetching.DownloadSettings": "mim_lightning.data.DownloadSettings",
    "mim_lightning.data.grouped.GroupedSettings": "mim_lightning.data.GroupedSettings",
    "mim_lightning.data.manifest.ManifestSource": "mim_lightning.data.ManifestSource",
    "mim_lightning.data.order.StreamSettings": "mim_lightning.data.StreamSettings",
    "mim_lightning.data.prepared.ShardSettings": "mim_lightning.data.ShardSettings",
    "mim_lightning.data.protocol.ProductDisjoint": "mim_lightning.data.ProductDisjoint",
    "mim_lightning.data.protocol.Seen": "mim_lightning.data.Seen",
    "mim_lightning.data.shard_cache.CacheSettings": "mim_lightning.data.CacheSettings",
    "mim_lightning.data.sources.grocery.GrocerySource": "mim_lightning.data.GrocerySource",
    "mim_lightning.data.sources.hugging_face.HuggingFaceSource": "mim_lightning.data.HuggingFaceSource",
    "mim_lightning.data.sources.synthetic.SyntheticSource": "mim_lightning.data.SyntheticSource",
    "mim_lightning.data.sources.webdataset.WebDatasetSource": "mim_lightning.data.WebDatasetSource",
    "mim_lightning.data.transforms.Augment": "mim_lightning.data.Augment",
    "mim_lightning.data.weighted.WeightedSettings": "mim_lightning.data.WeightedSettings",
    "mim_lightning.data.writing.ray_cluster.RaySettings": "mim_lightning.data.RaySettings",
    "mim_lightning.encoders.hf_text.HfText": "mim_lightning.encoders.HfText",
    "mim_lightning.encoders.open_clip_towers.OpenClipImage": "mim_lightning.encoders.OpenClipImage",
    "mim_lightning.encoders.open_clip_towers.OpenClipText": "mim_lightning.encoders.OpenClipText",
    "mim_lightning.encoders.timm_image.TimmImage": "mim_lightning.encoders.TimmImage",
    "mim_lightning.encoders.tiny.TinyImage": "mim_lightning.encoders.TinyImage",
    "mim_lightning.encoders.tiny.TinyText": "mim_lightning.encoders.TinyText",
    "mim_lightning.lit.callbacks.divergence.StopDiverged": "mim_lightning.lit.TerminateOnNaN",
    "mim_lightning.lit.callbacks.pruning.TrialPruning": "mim_lightning.lit.OptunaPruning",
    "mim_lightning.lit.callbacks.retrieval_browser.RetrievalBrowser": "mim_lightning.lit.TrackedQueries",
    "mim_lightning.lit.callbacks.retrieval_eval.RetrievalEval": "mim_lightning.lit.RetrievalEval",
    "mim_lightning.lit.callbacks.skipped_samples.SkippedSamples": "mim_lightning.lit.CorruptSamples",
    "mim_lightning.lit.callbacks.throughput.Throughput": "mim_lightning.lit.Throughput",
    "mim_lightning.lit.console.ProgressBar": "mim_lightning.lit.ProgressBar",
    "mim_lightning.lit.csv_logger.RunCSVLogger": "mim_lightning.lit.RunCSVLogger",
    "mim_lightning.lit.datamodule.MatchDataModule": "mim_lightning.lit.MatchDataModule",
    "mim_lightning.lit.optim.warmup_constant": "mim_lightning.lit.warmup_constant",
    "mim_lightning.lit.optim.warmup_cosine": "mim_lightning.lit.warmup_cosine",
    "mim_lightning.losses.contrastive.info_nce": "mim_lightning.losses.info_nce",
    "mim_lightning.losses.contrastive.sigmoid": "mim_lightning.losses.sigmoid",
    "mim_lightning.model.tower.Tower": "mim_lightning.model.Tower",
    "mim_lightning.search.index.settings.IndexSettings": "mim_lightning.search.IndexSettings",
    "mim_lightning.sweep.callback.SweepLedger": "mim_lightning.sweep.SweepLog",
}
FIRST_TARGETS = {present: former for former, present in reversed(FORMER_TARGETS.items())}


def to_present_targets(config: Any, report: Callable[[str, str], None] | None = None) -> Any:
    """Return plain containers in which every `_target_` has its present name; `report` gets each former and new one."""
    return _renamed(config, FORMER_TARGETS, report)


def to_first_targets(config: Any) -> Any:
    """Return plain containers in which every `_target_` has the name under which it was first recorded."""
    return _renamed(config, FIRST_TARGETS, None)


def _renamed(value: Any, names: Mapping[str, str], report: Callable[[str, str], None] | None) -> Any:
    if isinstance(value, list):
        return [_renamed(part, names, report) for part in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(part, names, report) for key, part in value.items()}
    target = value.get("_target_")
    if isinstance(target, str) and target in names:
        renamed["_target_"] = names[target]
        if report is not None:
            report(target, names[target])
    return renamed
