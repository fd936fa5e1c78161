"""From tables to batches. What the river and a config name stands here; how it is done, in the rooms.

    manifest, protocol            two tables -> checked rows, in splits
    checked, prepared             rows -> shard sets, whole or not there; progress tells how far
    order, grouped, weighted      which rows meet in which batch
    stream, skipping              shard sets -> samples, and what to do where one cannot be read
    collate, transforms, slots    samples -> batches, and how they come from the loader's workers
    fetching, shard_cache         how files come over a network: pictures, shards

    places/     paths and addresses, what is brought here from them, and how much of it is kept
    pictures/   one picture, wherever it lies: fetched, read, decoded
    tables/     rows of tables: opened, parsed, told what is wrong with them, collected
    sources/    a class for each kind of data set; synthetic/ draws one
    check/      is it fit to train on?
    shards/     shard sets, read: at random, by id, here or at an address
    writing/    shard sets, written: by processes or by a cluster, gone on with, verified
    dealing/    what orders are made of: lanes of windows, rows of one product side by side
    mixing/     several sets in one stream

`tests/test_house.py` says which room may know which.
"""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.data.check.settings import CheckSettings
    from mim_lightning.data.fetching import DownloadSettings
    from mim_lightning.data.grouped import GroupedSettings
    from mim_lightning.data.manifest import Manifest, ManifestSource, Source
    from mim_lightning.data.order import StreamSettings
    from mim_lightning.data.prepared import ShardSettings
    from mim_lightning.data.protocol import ProductDisjoint, Seen
    from mim_lightning.data.shard_cache import CacheSettings
    from mim_lightning.data.sources.grocery import GrocerySource
    from mim_lightning.data.sources.hugging_face import HuggingFaceSource
    from mim_lightning.data.sources.synthetic import SyntheticSource
    from mim_lightning.data.sources.webdataset import WebDatasetSource
    from mim_lightning.data.transforms import Augment
    from mim_lightning.data.weighted import WeightedSettings
    from mim_lightning.data.writing.ray_cluster import RaySettings
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "Augment": "mim_lightning.data.transforms",
            "CacheSettings": "mim_lightning.data.shard_cache",
            "CheckSettings": "mim_lightning.data.check.settings",
            "DownloadSettings": "mim_lightning.data.fetching",
            "GrocerySource": "mim_lightning.data.sources.grocery",
            "GroupedSettings": "mim_lightning.data.grouped",
            "HuggingFaceSource": "mim_lightning.data.sources.hugging_face",
            "Manifest": "mim_lightning.data.manifest",
            "ManifestSource": "mim_lightning.data.manifest",
            "ProductDisjoint": "mim_lightning.data.protocol",
            "RaySettings": "mim_lightning.data.writing.ray_cluster",
            "Seen": "mim_lightning.data.protocol",
            "ShardSettings": "mim_lightning.data.prepared",
            "Source": "mim_lightning.data.manifest",
            "StreamSettings": "mim_lightning.data.order",
            "SyntheticSource": "mim_lightning.data.sources.synthetic",
            "WebDatasetSource": "mim_lightning.data.sources.webdataset",
            "WeightedSettings": "mim_lightning.data.weighted",
        },
    )
