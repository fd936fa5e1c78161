"""Count the rows whose photo finds no positive among the products of its batch, in drawn shops of several sizes.

python experiments/composed_rows/positives.py experiments/composed_rows

Writes positives.md: over batches of shuffled training rows, the fraction of rows that make their own product a negative
of their photo, and of those whose photo finds no positive. No image is drawn.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mim_lightning.data.synthetic.catalog import build_products, build_queries

SHOPS = ((240, 10), (960, 4), (2400, 2), (2400, 10))  # products, training queries of each; the first is the default
CHANGE_FRACTION, BATCH_SIZES, NUM_EPOCHS = 0.4, (128, 512, 2048), 5
HEADER = """| products | training rows | batch | own product is a negative of the photo | photo without a positive |
| ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    text = "\n".join([HEADER, *(line for shop in SHOPS for line in lines_of(*shop))]) + "\n"
    (Path(sys.argv[1]) / "positives.md").write_text(text)
    print(text)


def lines_of(num_products: int, num_queries: int) -> Iterator[str]:
    rows = build_queries(build_products(num_products, 0), "train", num_queries, CHANGE_FRACTION, 0)
    products = np.array([row.product_id for row in rows])
    references = np.array([row.shown_product_id for row in rows])
    own = (products != references).mean()
    for batch_size in BATCH_SIZES:
        rng, without, num_rows = np.random.default_rng(0), 0, 0
        for _ in range(NUM_EPOCHS):
            order = rng.permutation(len(rows))
            for start in range(0, len(rows) - batch_size + 1, batch_size):
                batch = order[start : start + batch_size]
                without += int((~np.isin(references[batch], products[batch])).sum())
                num_rows += len(batch)
        if num_rows:
            yield f"| {num_products:,} | {len(rows):,} | {batch_size:,} | {own:.3f} | {without / num_rows:.3f} |"


if __name__ == "__main__":
    main()
