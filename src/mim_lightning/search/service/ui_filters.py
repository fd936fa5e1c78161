"""The filters of the user interface: a choice or a range for each column of the index that can be filtered by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from mim_lightning.search.service.ui_requests import ui_error


def make_filters(facets: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return a field for each choice and each end of a range, by column and "values", "min" or "max"."""
    fields: dict[tuple[str, str], Any] = {}
    if not facets:
        return fields
    with gr.Accordion("Filters", open=False, elem_id="filters"):
        for name, facet in facets.items():
            if "values" in facet:
                fields[name, "values"] = gr.Dropdown(facet["values"], multiselect=True, label=name)
                continue
            with gr.Row():
                # not gr.Number: the browser sends 0 for one that is empty
                for end in ("min", "max"):
                    fields[name, end] = gr.Textbox(label=f"{name}, {end}", placeholder=f"{facet[end]:g}", min_width=80)
    return fields


def read_filters(
    facets: Mapping[str, Any], filters: Mapping[tuple[str, str], Any], values: tuple[Any, ...]
) -> dict[str, Any] | None:
    """Return the filter of a search that the values of the fields say.

    Raises:
        gr.Error: an end of a range is no number.
    """
    where: dict[str, Any] = {}
    for (name, kind), value in zip(filters, values, strict=True):
        if kind == "values" and value:
            where[name] = value
        elif kind != "values" and (value or "").strip():
            where.setdefault(name, {})[kind] = _number(f"{name}, {kind}", value)
    return where or None


def _number(label: str, text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ui_error(f"{label}: '{text}' is not a number") from None
