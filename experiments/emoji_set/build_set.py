"""Write products.csv, queries.csv and images/ of the emoji set from npm packages and drawn pictures.

python experiments/emoji_set/build_set.py <node_modules> <pictures> <folder of the set>

<pictures> has noto/ and twemoji/ of render.mjs; build.sh runs both. A concept is named by its code points in
hexadecimal, joined by hyphens, without fe0f. Splits, ids and texts are functions of the packages.
"""

import csv
import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
PERSONS, GENDERS, HAIRS = {"1f468", "1f469", "1f9d1"}, {"2640", "2642"}, {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
JOINER, RIGHT = "200d", "27a1"
ARTISTS = ("noto", "twemoji", "fluent3d")
SIZE, QUALITY = 128, 88
TEXTS = (
    "cldr-annotations-full/annotations/en/annotations.json",
    "cldr-annotations-derived-full/annotationsDerived/en/annotations.json",
)
# @lobehub/fluent-emoji-3d 1.1.0 has two tones exchanged, and woman and man of "deaf person"
SWAPPED_TONES, SWAPPED_GENDERS = {"1f3fc": "1f3fd", "1f3fd": "1f3fc"}, {"2640": "2642", "2642": "2640"}
DEAF = "1f9cf"


def main() -> None:
    modules, pictures, out = map(Path, sys.argv[1:])
    draw_fluent(modules / "@lobehub/fluent-emoji-3d/assets", pictures / "fluent3d")
    concepts = Concepts(modules, pictures)
    out.mkdir(parents=True, exist_ok=True)
    for kind, artist in (("shop", "noto"), ("fluent3d", "fluent3d"), ("twemoji", "twemoji")):
        (out / "images" / kind).mkdir(parents=True, exist_ok=True)
        for key in concepts.keys:
            concepts.open(artist, key).save(out / concepts.image(kind, key), quality=QUALITY)
    write(out / "products.csv", PRODUCT_COLUMNS, product_rows(concepts))
    queries = [*photo_rows(concepts), *composed_rows(concepts)]
    write(out / "queries.csv", QUERY_COLUMNS, ([f"q{i:05d}", *row] for i, row in enumerate(queries)))
    print(f"{out}: {len(concepts.keys)} products, {len(concepts.families)} families, {len(queries)} queries")


def draw_fluent(assets: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(assets.glob("*.webp"), reverse=True):  # of two names of a concept, the one with fe0f comes last
        image = Image.open(path).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        resized = white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        resized.save(out / f"{without_variant(path.stem)}.png")


class Concepts:
    """Concepts that all three artists drew and that have a name, each with a drawing of its own in the catalog."""

    def __init__(self, modules: Path, pictures: Path) -> None:
        self.pictures, self.texts, self.categories = pictures, read_texts(modules), read_categories(modules)
        self.keys = sorted(self._distinct([*self._drawn_by_all()]))
        self._family_of = self._joined_families()
        self.families: dict[str, list[str]] = defaultdict(list)
        for key in self.keys:
            self.families[self.family(key)].append(key)

    def _drawn_by_all(self) -> Iterator[str]:
        drawn = {artist: {path.stem for path in (self.pictures / artist).glob("*.png")} for artist in ARTISTS}
        for key in sorted(drawn["noto"] & drawn["twemoji"]):
            parts = key.split("-")
            is_known = source_of("fluent3d", key) in drawn["fluent3d"] and key in self.texts and key in self.categories
            has_two_tones = sum(part in TONES for part in parts) > 1
            is_flag = all(0x1F1E6 <= int(part, 16) <= 0x1F1FF for part in parts)
            # families are one silhouette under many names
            is_family = is_known and (parts[0] == "1f46a" or self.texts[key].title.startswith("family"))
            if is_known and not (has_two_tones or is_flag or is_family):
                yield key

    def _distinct(self, keys: Sequence[str]) -> Iterator[str]:
        """Yield the shortest of the concepts that the catalog's artist drew alike."""
        first: dict[str, str] = {}
        for key in sorted(keys, key=lambda key: (len(key), key)):
            first.setdefault(self.digest("noto", key), key)
        yield from first.values()

    def _joined_families(self) -> dict[str, str]:
        """Return the family of each name of a family: those that share a drawing of any artist are one."""
        roots: dict[str, str] = {}

        def find(name: str) -> str:
            while roots.setdefault(name, name) != name:
                name = roots[name]
            return name

        owners: dict[str, str] = {}
        for key in self.keys:
            for artist in ARTISTS:
                owner = owners.setdefault(self.digest(artist, key), family_name(key))
                if find(owner) != find(family_name(key)):
                    roots[find(family_name(key))] = find(owner)
        roots[find("1f471")] = find("P")  # person: blond hair
        return {name: find(name) for name in map(family_name, self.keys)}

    @cached_property
    def splits(self) -> dict[str, str]:
        """The split of each family, of equal parts of each group and family size."""
        strata: dict[tuple[str, int], list[str]] = defaultdict(list)
        for family, keys in sorted(self.families.items()):
            strata[self.categories[keys[0]].split("/")[0], min(len(keys), 7)].append(family)
        rng, splits = random.Random(20231129), {}
        for _, families in sorted(strata.items()):
            rng.shuffle(families)
            offset = rng.random()
            for i, family in enumerate(families):
                place = (i + offset) / len(families) % 1.0
                splits[family] = "train" if place < 0.6 else "val" if place < 0.8 else "test"
        return splits

    @cached_property
    def ids(self) -> dict[str, str]:
        return {key: f"emo-{i:04d}" for i, key in enumerate(self.keys)}

    def family(self, key: str) -> str:
        return self._family_of[family_name(key)]

    def split(self, key: str) -> str:
        return self.splits[self.family(key)]

    def image(self, kind: str, key: str) -> str:
        return f"images/{kind}/{self.ids[key].removeprefix('emo-')}.jpg"

    def open(self, artist: str, key: str) -> Image.Image:
        return Image.open(self.pictures / artist / f"{source_of(artist, key)}.png").convert("RGB")

    def digest(self, artist: str, key: str) -> str:
        return hashlib.sha256(self.open(artist, key).tobytes()).hexdigest()


@dataclass(frozen=True)
class Texts:
    """The name of a concept and its keywords."""

    title: str
    keywords: list[str]


def read_texts(modules: Path) -> dict[str, Texts]:
    texts = {}
    for path in TEXTS:
        content = json.loads((modules / path).read_text("utf-8"))
        for characters, entry in content[path.split("/")[1]]["annotations"].items():
            if entry.get("tts"):
                key = without_variant("-".join(f"{ord(character):x}" for character in characters))
                texts[key] = Texts(entry["tts"][0], entry.get("default", []))
    return texts


def read_categories(modules: Path) -> dict[str, str]:
    categories = {}
    for entry in json.loads((modules / "emoji-datasource/emoji_pretty.json").read_text("utf-8")):
        for form in (entry, *entry.get("skin_variations", {}).values()):
            categories[without_variant(form["unified"])] = f"{entry['category']}/{entry['subcategory']}"
    return categories


def without_variant(sequence: str) -> str:
    return "-".join(part for part in sequence.lower().split("-") if part != "fe0f")


def source_of(artist: str, key: str) -> str:
    """Return the name under which an artist's package has the drawing of a concept."""
    if artist != "fluent3d":
        return key
    parts = [SWAPPED_TONES.get(part, part) for part in key.split("-")]
    return "-".join(SWAPPED_GENDERS.get(part, part) if parts[0] == DEAF else part for part in parts)


def family_name(key: str) -> str:
    kept = [part for part in key.split("-") if part not in {*TONES, *GENDERS, *HAIRS, JOINER, RIGHT}]
    return "-".join("P" if part in PERSONS else part for part in kept)


PRODUCT_COLUMNS = ("product_id", "title", "description", "category", "image", "split", "family", "codepoints")
QUERY_COLUMNS = ("query_id", "split", "image", "text", "product_id", "shown_product_id", "kind", "domain", "keyword")


def product_rows(concepts: Concepts) -> Iterator[list[str]]:
    for key in concepts.keys:
        title, keywords = concepts.texts[key].title, concepts.texts[key].keywords
        description = ", ".join(word for word in keywords if word != title)
        place = [concepts.image("shop", key), concepts.split(key), concepts.family(key), key]
        yield [concepts.ids[key], title, description, concepts.categories[key], *place]


def photo_rows(concepts: Concepts) -> Iterator[list[str]]:
    for artist in ("fluent3d", "twemoji"):
        for key in concepts.keys:
            place = [concepts.split(key), concepts.image(artist, key)]
            yield [*place, "", concepts.ids[key], "", "image", artist, keyword(key, concepts.texts[key])]


def composed_rows(concepts: Concepts) -> Iterator[list[str]]:
    """Yield rows of a photo of one concept and a word for its change into another, in one way each."""
    for key in concepts.keys:
        artist = ("fluent3d", "twemoji")[number("dom" + key) % 2]
        for kind, word, sources in changes(key, concepts.families[concepts.family(key)]):
            if sources:
                source = sorted(sources)[number(kind[0] + key) % len(sources)]
                place = [concepts.split(key), concepts.image(artist, source)]
                yield [*place, word, concepts.ids[key], concepts.ids[source], kind, artist, ""]


def changes(key: str, family: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the kinds of change that end in a concept, the word for it, and the concepts that it may start from."""
    others = [other for other in family if other != key]
    if tone := tone_of(key):
        yield "tone", TONES[tone], [other for other in others if without_tone(other) == without_tone(key)]
    if (gender := gender_of(key)) in ("woman", "man"):
        yield (
            "gender",
            gender,
            [
                other
                for other in others
                if tone_of(other) == tone and gender_of(other) not in ("", gender)
                if set(other.split("-")) ^ set(key.split("-")) <= {*PERSONS, *GENDERS, JOINER}
            ],
        )


def tone_of(key: str) -> str:
    return next((part for part in key.split("-") if part in TONES), "")


def without_tone(key: str) -> str:
    return "-".join(part for part in key.split("-") if part not in TONES)


def gender_of(key: str) -> str:
    parts = key.split("-")
    if "2640" in parts or "1f469" in parts:
        return "woman"
    if "2642" in parts or "1f468" in parts:
        return "man"
    return "person" if "1f9d1" in parts else ""


def keyword(key: str, texts: Texts) -> str:
    """Return a keyword that does not spell out the title, "" if there is none."""
    words = [
        word for word in texts.keywords if not words_of(texts.title) <= words_of(word) and word not in TONES.values()
    ]
    return words[number("kw" + key) % len(words)] if words else ""


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def write(path: Path, columns: Sequence[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
