"""What exists in the synthetic shop: products in families, and the queries shoppers send.

In come counts and a seed; out go Product and Query rows, without any picture drawn. `writing` makes tables and
pictures of them. A family shares category, shape, size and brand and is a grid of colours and patterns: that is
why "this, but in blue" has one true answer. All families draw from the same colours and patterns: that is why a
zebra bag looks so much like a zebra mug.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

from mim_lightning.data.synthetic import wording
from mim_lightning.data.synthetic.item import COLOURS, MARKS, SIZES, Look
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SILHOUETTES

GRIDS = (
    (4, 2),
    (4, 4),
    (8, 8),
)  # colours and patterns of a family: the first that makes room; they divide 8 and 8
KINDS = tuple((category, tuple(SILHOUETTES[category])[idx]) for idx in (0, 1) for category in SILHOUETTES)
NUM_FAMILIES = len(KINDS) * len(MARKS)  # size is no way to tell two apart, so it makes no family of its own
MAX_PRODUCTS = NUM_FAMILIES * GRIDS[-1][0] * GRIDS[-1][1]
SPLITS = ("train", "val")

Family = tuple[str, str, str, str]  # category, shape, size, brand


@dataclass(frozen=True)
class Product:
    """One row of the products table."""

    product_id: str
    image: str  # path relative to the tables
    title: str
    description: str
    category: str
    shape: str
    colour: str
    pattern: str
    size: str
    brand: str

    @property
    def look(self) -> Look:
        return Look(self.category, self.shape, self.colour, self.pattern, self.brand)

    @property
    def family(self) -> Family:
        return self.category, self.shape, self.size, self.brand


@dataclass(frozen=True)
class Query:
    """One row of the queries table: a photo, a text, the product they ask for and the product in the photo."""

    query_id: str
    split: str
    image: str
    text: str
    product_id: str
    shown_product_id: str
    kind: str  # "same" or "change"


def build_products(num_products: int, seed: int) -> list[Product]:
    """Fill the shop family by family; the last family may stay incomplete."""
    rng = random.Random(f"products-{seed}")
    num_colours, num_patterns = pick_grid(num_products)
    colours, patterns = deal_hands(COLOURS, num_colours, rng), deal_hands(PATTERNS, num_patterns, rng)
    products: list[Product] = []
    for category, shape, size, brand in list_families(rng):
        for pattern, colour in islice(product(next(patterns), next(colours)), num_products - len(products)):
            look = Look(category, shape, colour, pattern, brand)
            products.append(make_product(f"syn-{len(products) + 1:04d}", look, size, rng))
    return products


def pick_grid(num_products: int) -> tuple[int, int]:
    """Return how many colours and patterns a family needs."""
    return next(grid for grid in GRIDS if NUM_FAMILIES * grid[0] * grid[1] >= num_products)


def deal_hands(names: Iterable[str], hand_size: int, rng: random.Random) -> Iterator[list[str]]:
    """Deal hands from a shuffled deck, again and again, so that all names come equally often."""
    while True:
        deck = list(names)
        rng.shuffle(deck)
        yield from (deck[start : start + hand_size] for start in range(0, len(deck), hand_size))


def list_families(rng: random.Random) -> Iterator[Family]:
    """Yield all families, going through every category and shape before any comes again with another brand."""
    brands = {kind: rng.sample(list(MARKS), len(MARKS)) for kind in KINDS}
    for idx, kind in product(range(len(MARKS)), KINDS):
        yield (*kind, rng.choice(list(SIZES)), brands[kind][idx])


def make_product(product_id: str, look: Look, size: str, rng: random.Random) -> Product:
    """Put a product on the shelf, with its texts."""
    return Product(
        product_id=product_id,
        image=f"images/shop/{product_id}.jpg",
        title=wording.write_title(look, size),
        description=wording.write_description(look, size, rng),
        size=size,
        **vars(look),
    )


def build_queries(
    products: Sequence[Product], split: str, num_per_product: int, change_share: float, seed: int
) -> list[Query]:
    """Let shoppers photograph each product `num_per_product` times.

    `change_share` of the photos, spread evenly, come with a text that asks for another member of the family. A
    product that stands alone in its family is only asked for as it is.
    """
    rng = random.Random(f"queries-{split}-{seed}")
    families = group_families(products)
    queries = []
    for number in range(len(products) * num_per_product):
        shown = products[number // num_per_product]
        changes = list_changes(shown, families[shown.family])
        is_change = int((number + 1) * change_share) > int(number * change_share) and bool(changes)
        queries.append(make_query(f"{split}-{number + 1:06d}", split, shown, changes if is_change else [], rng))
    return queries


def make_query(
    query_id: str, split: str, shown: Product, changes: Sequence[tuple[str, Product]], rng: random.Random
) -> Query:
    """Ask for one of the changes, or, without any, for what the photo shows."""
    if changes:
        attribute, asked = rng.choice(changes)
        text = wording.write_change_request(attribute, getattr(asked, attribute), rng)
    else:
        asked, text = shown, wording.write_same_request(shown.look, rng)
    kind = "change" if changes else "same"
    image = f"images/street/{query_id}.jpg"
    return Query(query_id, split, image, text, asked.product_id, shown.product_id, kind)


def group_families(products: Sequence[Product]) -> dict[Family, list[Product]]:
    families = defaultdict(list)
    for item in products:
        families[item.family].append(item)
    return families


def list_changes(shown: Product, family: Sequence[Product]) -> list[tuple[str, Product]]:
    """Return the family's members that differ in one attribute, colour or pattern, with its name."""
    colours = [("colour", other) for other in family if other.pattern == shown.pattern and other != shown]
    patterns = [("pattern", other) for other in family if other.colour == shown.colour and other != shown]
    return colours + patterns
