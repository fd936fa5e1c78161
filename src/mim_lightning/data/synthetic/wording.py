"""How the synthetic shop and its shoppers talk: titles, descriptions and query texts.

In come a product's Look, its size and a random source; out go texts. `world` writes them into its tables. Both
splits draw from the same templates, so validation asks about new pictures and not about new words.
"""

from __future__ import annotations

import random

from mim_lightning.data.synthetic.item import Look

MOTIFS = {
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
SAME_REQUESTS = (  # what is in the photo, in one to three words
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
CHANGE_REQUESTS = {  # what should be different from the photo
    "colour": (
        "in {value}",
        "{value} one",
        "same but {value}",
        "this in {value}",
        "but {value}",
        "{value} please",
    ),
    "pattern": ("{motif}", "{value} one", "same but {value}", "this {motif}", "but {motif}", "{value} please"),
}
MISTYPED_SHARE = 0.04  # of the requests have two neighbouring letters swapped


def write_title(look: Look, size: str) -> str:
    """Name the product the way a shop does."""
    return f"{look.brand} {size} {look.colour} {look.pattern} {look.shape} {look.category}"


def write_description(look: Look, size: str, rng: random.Random) -> str:
    """Describe the product in a sentence that holds every attribute."""
    text = rng.choice(DESCRIPTIONS).format(**vars(look), size=size, motif=MOTIFS[look.pattern])
    return text[0].upper() + text[1:]


def write_same_request(look: Look, rng: random.Random) -> str:
    """Say in a few words what the photo shows."""
    return mistype(rng.choice(SAME_REQUESTS).format(**vars(look), motif=MOTIFS[look.pattern]).lower(), rng)


def write_change_request(attribute: str, value: str, rng: random.Random) -> str:
    """Ask for what the photo shows with one attribute changed to the given value."""
    return mistype(rng.choice(CHANGE_REQUESTS[attribute]).format(value=value, motif=MOTIFS.get(value, "")), rng)


def mistype(text: str, rng: random.Random) -> str:
    """Now and then swap two neighbouring letters inside the last word."""
    start = text.rfind(" ") + 1
    if rng.random() >= MISTYPED_SHARE or len(text) - start < 4:
        return text
    at = rng.randrange(start + 1, len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
