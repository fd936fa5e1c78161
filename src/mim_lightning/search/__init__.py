"""From a catalog to answers: index, searcher, service.

Of `data` it imports images and shards alone: contract `search` in pyproject.toml.
"""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.search.index.index_settings import IndexSettings
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "IndexSettings": "mim_lightning.search.index.index_settings",
        },
    )
