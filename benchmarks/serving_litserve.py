"""The same search under LitServe, for comparison by `serving.py`: its queues and batching, our model and index.

Takes an index folder and a port on loopback, and runs until it is stopped.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Any

import litserve
import numpy as np

from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher, open_searcher


class Given:
    """Gives a search the vectors that were encoded in a batch."""

    def __init__(self, encoder: Any, image: np.ndarray, text: np.ndarray | None) -> None:
        self.fingerprint, self.fusions = encoder.fingerprint, encoder.fusions
        self.image, self.text = image, text

    def embed_parts(
        self, images: Sequence[bytes], texts: Sequence[str], towers: Sequence[str | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.image[None], np.empty((0, 0)) if self.text is None else self.text[None]


class Search(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.searcher = open_searcher(sys.argv[1])

    # as JSON: an uploaded file does not pass its queue between processes (it cannot be pickled)
    def decode_request(self, request: dict) -> SearchQuery:
        return SearchQuery(images=(base64.b64decode(request["image"]),), text=request.get("text"))

    def batch(self, queries: list[SearchQuery]) -> list[SearchQuery]:
        return queries

    def predict(self, queries: list[SearchQuery]) -> list[dict]:
        encoder, index = self.searcher.encoder, self.searcher.index
        images = encoder.embed_images([query.images[0] for query in queries])
        worded = [query.text for query in queries if query.text]
        texts = iter(encoder.embed_texts(worded) if worded else ())
        pairs = zip(images, queries, strict=True)
        given = [Given(encoder, image, next(texts) if query.text else None) for image, query in pairs]
        found = [Searcher(part, index).search(query).hits for part, query in zip(given, queries, strict=True)]
        return [{"hits": [{"product_id": hit.product_id, **hit.metadata} for hit in hits]} for hits in found]

    def unbatch(self, output: list[dict]) -> list[dict]:
        return output

    def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    api = Search(max_batch_size=32, batch_timeout=0.005, api_path="/search")
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
