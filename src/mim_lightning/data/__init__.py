"""From tables to batches.

manifest/      two tables -> validated rows; formats, decoding, content hashes; splits: which rows are evaluated
clicks/        a log of impressions -> examination by position, graded and weighted answers
sources/       one class for each kind of data set; synthetic/ draws one
images/        one image: downloaded, read, decoded, transformed
validation/    errors and warnings of rows and images, before anything is written
preparation/   rows -> shard sets, written by processes or a Ray cluster, resumed and verified
versions/      rows added to, replaced in and deleted from prepared data, in a next version of them
shards/        shard sets: written, read at random or by id, cached from an address, several read as one
sampling/      which rows meet in a global batch, as a function of seed, epoch and position
loading/       samples -> batches, through workers and shared memory; corrupt samples; cached features
"""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.data.images.download import DownloadSettings
    from mim_lightning.data.images.transforms import Augment
    from mim_lightning.data.loading.feature_cache import FeatureCacheSettings
    from mim_lightning.data.manifest.manifest import Manifest, ManifestSource, Source
    from mim_lightning.data.preparation.prepared import ShardSettings
    from mim_lightning.data.preparation.ray_cluster import RaySettings
    from mim_lightning.data.sampling.grouped import GroupedSettings
    from mim_lightning.data.sampling.hard_negatives import HardNegativeSettings, MiningSettings
    from mim_lightning.data.sampling.shuffled import ShuffledSettings
    from mim_lightning.data.sampling.weighted import WeightedSettings
    from mim_lightning.data.shards.cache import CacheSettings
    from mim_lightning.data.sources.clicks import ClicksSource
    from mim_lightning.data.sources.grocery import GrocerySource
    from mim_lightning.data.sources.hugging_face import HuggingFaceSource
    from mim_lightning.data.sources.synthetic import SyntheticSource
    from mim_lightning.data.sources.webdataset import WebDatasetSource
    from mim_lightning.data.splits import GivenSplits, ProductDisjointSplits
    from mim_lightning.data.validation.settings import ValidationSettings
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "Augment": "mim_lightning.data.images.transforms",
            "CacheSettings": "mim_lightning.data.shards.cache",
            "ClicksSource": "mim_lightning.data.sources.clicks",
            "ValidationSettings": "mim_lightning.data.validation.settings",
            "DownloadSettings": "mim_lightning.data.images.download",
            "FeatureCacheSettings": "mim_lightning.data.loading.feature_cache",
            "GrocerySource": "mim_lightning.data.sources.grocery",
            "GroupedSettings": "mim_lightning.data.sampling.grouped",
            "HardNegativeSettings": "mim_lightning.data.sampling.hard_negatives",
            "HuggingFaceSource": "mim_lightning.data.sources.hugging_face",
            "Manifest": "mim_lightning.data.manifest.manifest",
            "ManifestSource": "mim_lightning.data.manifest.manifest",
            "MiningSettings": "mim_lightning.data.sampling.hard_negatives",
            "ProductDisjointSplits": "mim_lightning.data.splits",
            "RaySettings": "mim_lightning.data.preparation.ray_cluster",
            "GivenSplits": "mim_lightning.data.splits",
            "ShardSettings": "mim_lightning.data.preparation.prepared",
            "Source": "mim_lightning.data.manifest.manifest",
            "ShuffledSettings": "mim_lightning.data.sampling.shuffled",
            "SyntheticSource": "mim_lightning.data.sources.synthetic",
            "WebDatasetSource": "mim_lightning.data.sources.webdataset",
            "WeightedSettings": "mim_lightning.data.sampling.weighted",
        },
    )
