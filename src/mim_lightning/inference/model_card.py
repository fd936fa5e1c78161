"""The model card of an export: what the model is, its measured quality, how to load it.

Markdown with the front matter that the Hugging Face hub reads. It contains no number that was not measured on this
very model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.inference.export_format import ExportFacts
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.inference.quantization_loss import METRICS, VARIANTS, QuantizationLoss
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.digest import has_same_scheme
from mim_lightning.metric_names import WIDTH, variants_of
from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.model.compatibility import parse_galleries
from mim_lightning.model.fusion import OPTIONS, weights_of

COLUMNS = ("hit@1", "hit@5", "hit@10", "mrr", "map", "ndcg@10")
RECORD = ("evaluation", "record.json")  # in a run's folder, beside results.json: names the evaluated model
FRONT_MATTER = """---
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [image-matching, multimodal, retrieval]
{license}---
"""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # names of the hub are written so


@dataclass(frozen=True)
class Terms:
    """On what terms the weights may be used.

    Args:
        license: as the hub names it, such as "apache-2.0" or "cc-by-4.0"; None: the card says nothing of it.
        credits: Markdown: whose pictures, texts and weights the model was made with.

    Raises:
        ValueError: not such a name, or credits that are no text.
    """

    license: str | None = None
    credits: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not LICENSE.fullmatch(str(self.license)):
            raise ValueError(f"license={self.license}: give the hub's name of one, such as apache-2.0 or cc-by-4.0")
        if self.credits is not None and not isinstance(self.credits, str):
            raise ValueError(f"credits={self.credits}: give text, in Markdown")


@dataclass(frozen=True)
class Evaluation:
    """Results of this model, flat as in results.json, and the queries they are of."""

    results: dict[str, float]
    data: str
    split: str


def find_evaluation(checkpoint: Path, evaluation: Path | None, fingerprint: str) -> Evaluation | None:
    """Return the results of this model in `evaluation`, a folder of train or evaluate, or else in the checkpoint's run.

    Returns:
        None: the run has none of this model.

    Raises:
        ValueError: `evaluation` is no such folder, or of another model.
    """
    folder = evaluation or checkpoint.absolute().parents[1]
    record, results = folder.joinpath(*RECORD), folder / "results.json"
    if not record.exists() or not results.exists():
        if evaluation is not None:
            raise ValueError(f"evaluation={folder}: holds no results.json with its record; give evaluate's output")
        return None
    with errors_as_damaged_file(record):
        run = json.loads(record.read_text())["run"]
        data, split, run_fingerprint = run["config"]["data"]["name"], run["val_split"], run["fingerprint"]
    if not has_same_scheme(run_fingerprint, fingerprint):
        fingerprint = load_matcher(checkpoint, like=run_fingerprint).fingerprint
    if run_fingerprint == fingerprint:
        with errors_as_damaged_file(results):
            return Evaluation(dict(json.loads(results.read_text())), data, split)
    if evaluation is not None:
        raise ValueError(f"evaluation={folder}: is of model {run_fingerprint}, the checkpoint is {fingerprint}")
    return None  # the results of the run are those of its other checkpoint


def write_card(
    facts: ExportFacts,
    evaluation: Evaluation | None,
    loss: QuantizationLoss | None,
    why_none: str,
    compared_on: str,
    terms: Terms,
    loading: Sequence[str] | None = None,
    library: str = "mim_lightning",
) -> str:
    """Return the card.

    Args:
        facts: of the folder.
        evaluation: of the float32 model; None: none is known.
        loss: of rounding; None: not measured.
        why_none: why not.
        compared_on: the data that ONNX towers were compared on.
        terms: of use.
        loading: lines that say how to load the folder; None: by `mim_lightning.load`.
        library: that loads it, as the hub names it.
    """
    parts = [
        *_head(facts),
        *(loading or _loading(facts)),
        *_quality(facts, evaluation),
        *_galleries(facts),
        *_data(facts),
    ]
    if facts.precision != "float32":
        parts += _rounding(facts, loss, why_none)
    if facts.onnx:
        parts += _onnx(facts, compared_on)
    if terms.credits is not None:
        parts += ["\n## Credits\n", terms.credits.strip()]
    license = "" if terms.license is None else f"license: {terms.license}\n"
    return FRONT_MATTER.format(library=library, license=license) + "\n" + "\n".join(parts) + "\n"


def _head(facts: ExportFacts) -> Iterator[str]:
    run = facts.config.get("run", {}).get("id", "unnamed run")
    yield f"# {run}\n"
    yield "A model of mim_lightning: it embeds images and texts of queries and products in one space.\n"
    yield f"Fingerprint `{facts.fingerprint}`, {facts.dimension} dimensions, weights in {facts.precision}.\n"
    yield "| tower | encoder | input |\n| --- | --- | --- |"
    model = facts.config["model"]
    for name in facts.tower_names:
        owner = model["tied"].get(name) or name
        encoder = model["towers"][owner]["encoder"]
        kind = encoder.get("name") or encoder["_target_"].rsplit(".", 1)[-1]
        yield f"| {name} | {kind}{f', the weights of {owner}' if owner != name else ''} | {facts.inputs[owner]} |"
    for name, config in model["fusions"].items():
        total = " + ".join(f"{weight:g} {tower}" for tower, weight in weights_of(config).items())
        options = ", ".join(f"{key}={value}" for key, value in config.items() if key in OPTIONS)
        yield f"\nFusion `{name}`: {total}, {options or 'to unit length'}."


def _loading(facts: ExportFacts) -> Iterator[str]:
    yield "\n## Load it\n"
    yield "```python\nimport mim_lightning\n"
    yield 'model = mim_lightning.load("<this folder, or hf://user/repo>")'
    text = ', ["in blue"]' if any("text" in kind for kind in facts.inputs.values()) else ""
    yield f'vectors = model.embed_query(["photo.jpg"]{text})  # (1, {facts.dimension}) float32, unit length\n```'


def _quality(facts: ExportFacts, evaluation: Evaluation | None) -> Iterator[str]:
    yield "\n## Quality\n"
    if evaluation is None:
        yield "There is no evaluation of this model beside its checkpoint."
        return
    results = evaluation.results
    which = "" if facts.precision == "float32" else f" of the float32 model `{base_fingerprint(facts.fingerprint)}`"
    columns = variants_of(COLUMNS, [key.split("/")[2] for key in results if key.startswith("val/")])
    yield f"On split `{evaluation.split}` of `{evaluation.data}`{which}: fractions, 0 to 1, with 95 % cluster"
    yield "bootstrap intervals over products in brackets.\n"
    yield f"| direction | {' | '.join(columns)} | queries |\n| --- |{' ---: |' * (len(columns) + 1)}"
    for direction in dict.fromkeys(key.split("/")[1] for key in results if key.startswith("val/")):
        cells = [_cell(results, f"val/{direction}/{name}") for name in columns]
        queries = results.get(f"counts/{direction}/num_queries")
        yield f"| {direction} | {' | '.join(cells)} | {int(queries) if queries is not None else '-'} |"
    yield from _widths(results, columns)
    if "num_products" in results:
        yield f"\nRanked against {int(results['num_products'])} products."
    yield "\nDirections: " + "; ".join(
        f"*{name}* finds {ends['gallery']} by {ends['query']}" for name, ends in _directions(facts).items()
    )


def _galleries(facts: ExportFacts) -> Iterator[str]:
    for name, results in parse_galleries(facts.galleries).items():
        yield f"\n## Searching an index of model `{name}`\n"
        yield "Queries of this model in the gallery of that one, beside its own queries.\n"
        yield "| direction | gallery | metric | this model | its own | 95 % of the difference | queries |"
        yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
        for result in results:
            interval = f"{result.low:+.4f} to {result.high:+.4f}" if result.low == result.low else "-"
            values = f"{result.value:.4f} | {result.former:.4f} | {interval} | {result.num_queries}"
            yield f"| {result.direction} | {result.gallery} | {result.metric} | {values} |"


def _widths(results: Mapping[str, float], columns: Sequence[str]) -> Iterator[str]:
    """Yield a table of what the first numbers of the vectors find, if the evaluation ranked by them."""
    found = dict.fromkeys(
        (key.split("/")[1], key.split("/")[3]) for key in results if key.startswith("val/") and f"/{WIDTH}" in key
    )
    widths = sorted(found, key=lambda pair: int(pair[1].removeprefix(WIDTH)))
    if not widths:
        return
    yield "\nVectors cut to their first numbers, at unit length again (`build_index dimension=<width>`):\n"
    yield f"| width | direction | {' | '.join(columns)} |\n| ---: | --- |{' ---: |' * len(columns)}"
    for direction, width in widths:
        cells = [_cell(results, f"val/{direction}/{name}/{width}") for name in columns]
        yield f"| {width.removeprefix(WIDTH)} | {direction} | {' | '.join(cells)} |"


def _cell(results: Mapping[str, float], key: str) -> str:
    if key not in results:
        return "-"
    low, high = results.get(f"{key}/low"), results.get(f"{key}/high")
    return f"{results[key]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _data(facts: ExportFacts) -> Iterator[str]:
    data = facts.config["data"]
    source = (data.get("source") or {}).get("_target_", "prepared shards").rsplit(".", 1)[-1]
    splits = data.get("splits") or {}
    yield "\n## Data\n"
    yield f"Trained on split `{data['shards']['train_split']}` of `{data['name']}` ({source})."
    if "fold" in splits:
        yield f"Fold {splits['fold']} of {splits['num_folds']} of the products was held out."


def _rounding(facts: ExportFacts, loss: QuantizationLoss | None, why_none: str) -> Iterator[str]:
    yield f"\n## What {facts.precision} costs\n"
    if loss is None:
        yield f"Not measured: {why_none}."
        return
    counts = f"{loss.num_queries} queries ({1 / loss.num_queries:.4f} each) and {loss.num_products} products"
    yield f"Against the float32 model, over {counts}.\n"
    yield "| tower | mean cosine | smallest |\n| --- | ---: | ---: |"
    for tower, (mean, least) in loss.cosines.items():
        yield f"| {tower} | {mean:.5f} | {least:.5f} |"
    yield f"\n| direction | metric | {' | '.join(VARIANTS)} |\n| --- | --- |{' ---: |' * len(VARIANTS)}"
    for direction, metrics in loss.recall.items():
        for metric in METRICS:
            yield f"| {direction} | {metric} | {' | '.join(f'{value:.4f}' for value in metrics[metric])} |"


def _onnx(facts: ExportFacts, compared_on: str) -> Iterator[str]:
    yield "\n## ONNX\n"
    yield f'`mim_lightning.load(folder, runtime="onnx")`; compared with PyTorch on {compared_on}.\n'
    yield "| file | inputs | samples | largest difference | smallest cosine |\n| --- | --- | ---: | ---: | ---: |"
    for part in facts.onnx.values():
        numbers = f"{part['num_samples']} | {part['max_abs_difference']:.1e} | {part['min_cosine']:.6f}"
        yield f"| {part['file']} | {', '.join(part['inputs'])} | {numbers} |"


def _directions(facts: ExportFacts) -> dict[str, Any]:
    return {name: ends for name, ends in facts.config.get("directions", {}).items() if ends is not None}
