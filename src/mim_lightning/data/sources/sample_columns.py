"""Where the samples of a tar file hold our columns.

A user's mapping comes in, rows by our column names go out of TarSamples; `webdataset` calls it for its products and
for its queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mim_lightning.data.manifest.rows import RowError
from mim_lightning.data.manifest.table import IMAGE, ColumnNames, TableSpec, validate_name
from mim_lightning.data.sources.tar_reader import KEY, TarSample
from mim_lightning.fields import DECLARED

ALTERNATIVES = "|"
_Places = tuple[tuple[str, str], ...]  # member and key of its JSON, "" for the member itself, in order of preference


class SampleColumns:
    """The columns of one table.

    Args:
        spec: the table, with the places of declared fields.
        columns: our column name -> place in a sample.
        further: name -> place of what the user wants besides.
        further_key: under which key of config those stand.
    """

    def __init__(self, spec: TableSpec, columns: ColumnNames, further: Mapping[str, str], further_key: str) -> None:
        for ours in columns:
            validate_name(ours, spec.known, f"data.source.columns.{spec.name}", "column")
        self.spec = spec
        self.columns = {name: _parse(text) for name, text in columns.items() if text}
        self.further = {name: _parse(text) for name, text in further.items() if text}
        self.fields = {name: _parse(text) for name, text in spec.fields.items()}
        self._config_keys = {name: f"data.source.columns.{spec.name}.{name}" for name in self.columns}
        self._config_keys |= {name: f"data.source.{further_key}.{name}" for name in self.further}
        self._config_keys |= {name: f"data.source.fields.{name}" for name in self.fields}

    @property
    def read_members(self) -> set[str]:
        """The members whose content is read; pictures are not."""
        places = [
            place
            for name, choices in (self.columns | self.further | self.fields).items()
            for place in choices
            if place[1] or name != IMAGE
        ]
        return {member for member, _ in places} - {KEY}

    def require(self, samples: Sequence[TarSample]) -> None:
        """Refuse a mapping to what no sample has.

        Raises:
            ValueError: naming the key, and what the samples have.
        """
        if not samples:
            return
        found = {place for sample in samples for place in _places_of(sample)}
        for name, choices in (self.columns | self.further | self.fields).items():
            if not found.intersection(choices):
                wanted = ALTERNATIVES.join(map(_written, choices))
                raise ValueError(
                    f"{self._config_keys[name]}={wanted}: none of the first {len(samples)} samples has it; "
                    f"they have {', '.join(sorted(map(_written, found)))}; null if there is none"
                )

    def row_of(self, sample: TarSample) -> dict[str, Any]:
        """Return the row of a sample by our column names, with a ref where a member is a picture.

        Raises:
            RowError: a member is not what it should be.
        """
        row = {name: _look_up(sample, choices, name == IMAGE) for name, choices in self.columns.items()}
        further = {name: _look_up(sample, choices, False) for name, choices in self.further.items()}
        if self.fields:
            row[DECLARED] = {name: _look_up(sample, choices, False) for name, choices in self.fields.items()}
        return row | ({self.spec.others: further} if self.spec.others else further)


def _parse(text: str) -> _Places:
    parts = (part.strip().partition(":") for part in text.split(ALTERNATIVES))
    return tuple((member.lower() if member != KEY else KEY, key) for member, _, key in parts)


def _written(place: tuple[str, str]) -> str:
    return f"{place[0]}:{place[1]}" if place[1] else place[0]


def _look_up(sample: TarSample, choices: _Places, is_picture: bool) -> Any:
    for member, key in choices:
        if member == KEY:
            return sample.key
        if member not in sample.members:
            continue
        if not key:
            return [sample.members[member]] if is_picture else sample.text(member)
        value = sample.value(member, key)
        if value is not None:
            return value
    return None


def _places_of(sample: TarSample) -> Iterator[tuple[str, str]]:
    yield KEY, ""
    for member in sample.members:
        yield member, ""
        if member in sample.contents:
            with suppress(RowError):  # told when the sample is read, if it is to be JSON
                yield from ((member, key) for key in _keys_of(sample.json_object(member)))


def _keys_of(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{prefix}{name}"
            yield from _keys_of(value, f"{prefix}{name}.")
