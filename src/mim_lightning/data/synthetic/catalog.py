"""Products and queries of the synthetic shop: rows of its two tables, without images.

A family shares category, shape, size and brand and is a grid of colors and patterns: "this, but in blue" has exactly
one target. All families draw from the same colors and patterns: a zebra bag looks much like a zebra mug. Both splits
use the same text templates: validation differs in its images.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

from mim_lightning.data.synthetic.item import COLORS, MARKS, SIZES, Look
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SHAPES

# colors and patterns of a family: the first grid that holds all products; the numbers divide 8 and 8
GRIDS = ((4, 2), (4, 4), (8, 8))
KINDS = tuple((category, tuple(SHAPES[category])[idx]) for idx in (0, 1) for category in SHAPES)
NUM_FAMILIES = len(KINDS) * len(MARKS)  # families do not differ in size alone: a photo does not show it
MAX_PRODUCTS = NUM_FAMILIES * GRIDS[-1][0] * GRIDS[-1][1]
SPLITS = ("train", "val")

PATTERN_PHRASES = {
    "plain": "without a pattern",
    "zebra": "with zebra stripes",
    "striped": "with stripes",
    "dotted": "with dots",
    "checked": "with checks",
    "zigzag": "with a zigzag",
    "starred": "with stars",
    "floral": "with flowers",
}
DESCRIPTIONS = (
    "A {size} {shape} {category} by {brand}, {colour} {motif}.",
    "{brand} makes this {colour} {shape} {category} {motif}; it is the {size} one.",
    "{size} {category}, {shape} shape, in {colour} {motif}, with the mark of {brand}.",
)
SAME_TEXTS = (  # the photo's content, in one to three words
    "{category}",
    "{pattern} {category}",
    "{pattern} {category}",
    "{colour} {category}",
    "{colour} {category}",
    "{colour} {shape}",
    "{shape} {category}",
    "{colour} {pattern}",
    "{pattern} {shape}",
    "{brand} {category}",
    "{colour} {pattern} {category}",
    "{category} {motif}",
)
CHANGE_TEXTS = {  # how the target differs from the photo
    "colour": ("in {value}", "{value} one", "same but {value}", "this in {value}", "but {value}", "{value} please"),
    "pattern": ("{motif}", "{value} one", "same but {value}", "this {motif}", "but {motif}", "{value} please"),
}
TYPO_FRACTION = 0.04  # of the texts have two neighboring letters swapped

Family = tuple[str, str, str, str]  # category, shape, size, brand


@dataclass(frozen=True)
class SyntheticProduct:
    """A row of the products table."""

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
class SyntheticQuery:
    """A row of the queries table: a photo, a text, the target product and the product in the photo."""

    query_id: str
    split: str
    image: str
    text: str
    product_id: str
    shown_product_id: str
    kind: str  # "same" or "change"


def build_products(num_products: int, seed: int) -> list[SyntheticProduct]:
    """Return the products, family by family; the last family may be incomplete."""
    rng = random.Random(f"products-{seed}")
    num_colors, num_patterns = next(grid for grid in GRIDS if NUM_FAMILIES * grid[0] * grid[1] >= num_products)
    colors, patterns = _deal(COLORS, num_colors, rng), _deal(PATTERNS, num_patterns, rng)
    products: list[SyntheticProduct] = []
    for category, shape, size, brand in _list_families(rng):
        for pattern, color in islice(product(next(patterns), next(colors)), num_products - len(products)):
            look = Look(category, shape, color, pattern, brand)
            products.append(_make_product(f"syn-{len(products) + 1:04d}", look, size, rng))
    return products


def build_queries(
    products: Sequence[SyntheticProduct], split: str, num_per_product: int, change_share: float, seed: int
) -> list[SyntheticQuery]:
    """Return `num_per_product` queries with photos of each product.

    Args:
        change_share: fraction of the queries, evenly spread, whose target is another product of the family; a product
            without one is its own target.
    """
    rng = random.Random(f"queries-{split}-{seed}")
    families = defaultdict(list)
    for each in products:
        families[each.family].append(each)
    queries = []
    for number in range(len(products) * num_per_product):
        reference = products[number // num_per_product]
        changes = _list_changes(reference, families[reference.family])
        is_change = int((number + 1) * change_share) > int(number * change_share) and bool(changes)
        queries.append(_make_query(f"{split}-{number + 1:06d}", split, reference, changes if is_change else [], rng))
    return queries


def _deal(names: Iterable[str], num_names: int, rng: random.Random) -> Iterator[list[str]]:
    """Yield groups of names from a shuffled list, again and again, so that all names are equally frequent."""
    while True:
        deck = list(names)
        rng.shuffle(deck)
        yield from (deck[start : start + num_names] for start in range(0, len(deck), num_names))


def _list_families(rng: random.Random) -> Iterator[Family]:
    """Yield all families: every category and shape once before any is repeated with another brand."""
    brands = {kind: rng.sample(list(MARKS), len(MARKS)) for kind in KINDS}
    for idx, kind in product(range(len(MARKS)), KINDS):
        yield (*kind, rng.choice(list(SIZES)), brands[kind][idx])


def _make_product(product_id: str, look: Look, size: str, rng: random.Random) -> SyntheticProduct:
    description = rng.choice(DESCRIPTIONS).format(**vars(look), size=size, motif=PATTERN_PHRASES[look.pattern])
    return SyntheticProduct(
        product_id=product_id,
        image=f"images/shop/{product_id}.jpg",
        title=f"{look.brand} {size} {look.colour} {look.pattern} {look.shape} {look.category}",
        description=description[0].upper() + description[1:],
        size=size,
        **vars(look),
    )


def _make_query(
    query_id: str,
    split: str,
    reference: SyntheticProduct,
    changes: Sequence[tuple[str, SyntheticProduct]],
    rng: random.Random,
) -> SyntheticQuery:
    """Return a query for one of the changes, or, without any, for the product in the photo."""
    if changes:
        attribute, target = rng.choice(changes)
        value = getattr(target, attribute)
        text = rng.choice(CHANGE_TEXTS[attribute]).format(value=value, motif=PATTERN_PHRASES.get(value, ""))
    else:
        target, look = reference, reference.look
        text = rng.choice(SAME_TEXTS).format(**vars(look), motif=PATTERN_PHRASES[look.pattern]).lower()
    text = _mistype(text, rng)
    kind = "change" if changes else "same"
    image = f"images/street/{query_id}.jpg"
    return SyntheticQuery(query_id, split, image, text, target.product_id, reference.product_id, kind)


def _list_changes(
    reference: SyntheticProduct, family: Sequence[SyntheticProduct]
) -> list[tuple[str, SyntheticProduct]]:
    """Return the products of a family that differ in color or in pattern alone, with the name of the attribute."""
    colors = [("colour", other) for other in family if other.pattern == reference.pattern and other != reference]
    patterns = [("pattern", other) for other in family if other.colour == reference.colour and other != reference]
    return colors + patterns


def _mistype(text: str, rng: random.Random) -> str:
    """Swap two neighboring letters inside the last word of a few texts."""
    start = text.rfind(" ") + 1
    if rng.random() >= TYPO_FRACTION or len(text) - start < 4:
        return text
    at = rng.randrange(start + 1, len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
