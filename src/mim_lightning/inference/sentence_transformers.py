"""A checkpoint as a folder that `sentence_transformers.SentenceTransformer` loads without code of ours.

Each tower is a route of a Router: network of transformers, pooling, linear layers, unit length. Needs the extra
`sentence-transformers`. A route has one input, so a fusion is a sum of what two routes return, and stays with the user.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mim_lightning.artifact_paths import EXPORT_FINGERPRINT
from mim_lightning.encoders.interface import HfForm
from mim_lightning.fields import IMAGE, PRODUCT, QUERY, TEXT, field_name
from mim_lightning.inference.export_format import CARD_FILE, ExportFacts, describe_model
from mim_lightning.inference.export_writer import validate_output
from mim_lightning.inference.loading import to_device
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.model_card import Evaluation, Terms, write_card
from mim_lightning.inference.query_product_fusion import find_text_tower, tower_modalities
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.model.checkpoint import TrainedMatcher
from mim_lightning.model.fusion import FIXED_SUM, LEARNED_SUM, Fusion
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import ImageSpec, TowerSpec

FORMAT = "sentence_transformers"
EXTRA = "pip install 'mim-lightning[sentence-transformers]'"
TASKS = {"query": QUERY, "document": PRODUCT}  # of encode_query and encode_document
POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
MAX_DIFFERENCE = 1e-5  # of a number of a vector from that of `mim_lightning.load`; above it the export fails
TEXTS = ["red shoes", "a green apple, 2 for 1", "blue " * 200, "x"]


@dataclass(frozen=True)
class RoutedModel:
    """What was written."""

    facts: ExportFacts
    routes: dict[tuple[str, str], str]  # (task, modality) -> tower
    differences: dict[str, float]  # by tower, the largest of a number of a vector from that of `mim_lightning.load`


def export_for_sentence_transformers(
    trained: TrainedMatcher,
    output: Path,
    evaluation: Evaluation | None = None,
    terms: Terms | None = None,
    towers: Sequence[str] | None = None,
) -> RoutedModel:
    """Write the folder, load it as its users will, and compare every tower.

    Args:
        trained: the checkpoint; its matcher is left with merged weights.
        output: the folder; an earlier export is replaced.
        evaluation: of this checkpoint, for the card.
        terms: of use, for the card.
        towers: to export; None: all.

    Raises:
        ValueError: the extra is missing, a folder of something else, or a tower or fusion that the modules of
            sentence-transformers cannot express.
    """
    validate_output(output)
    _require_extra()
    from mim_lightning.encoders.hf_files import without_reports

    trained = trained.merged()
    matcher = trained.matcher.eval()
    names = _choose_towers(matcher, towers)
    _validate_fusions(matcher, names, is_chosen=towers is not None)
    routes = _choose_routes(matcher.input_specs(), names)
    with atomic_write_folder(output) as partial, without_reports():
        _write(matcher, names, routes, partial)
        differences = _compare(partial, to_device(trained, torch.device("cpu")), names, matcher.prompts)
        facts = describe_model(matcher, trained.config, trained.fingerprint, "float32")
        (partial / EXPORT_FINGERPRINT).write_text(f"{facts.fingerprint}\n")
        written = RoutedModel(facts, routes, differences)
        loading = list(_describe_loading(written, matcher, names))
        card = write_card(facts, evaluation, None, "", "", terms or Terms(), loading, library="sentence-transformers")
        (partial / CARD_FILE).write_text(card, "utf-8")
    return written


def _choose_towers(matcher: Matcher, given: Sequence[str] | None) -> list[str]:
    names = list(matcher.tower_names if given is None else given)
    for name in names:
        if name not in matcher.tower_names:
            raise ValueError(f"towers={name}: this model has no such tower; there are {', '.join(matcher.tower_names)}")
        if name in matcher.fields:
            fields = " and ".join(matcher.fields[name])
            raise ValueError(
                f"tower '{name}': reads {fields} together, but a route of sentence-transformers has one input; "
                f"format={FORMAT} exports towers over one field"
            )
    if not names:
        raise ValueError(f"towers=[]: give some of {', '.join(matcher.tower_names)}, or null for all")
    return names


def _validate_fusions(matcher: Matcher, names: Sequence[str], is_chosen: bool) -> None:
    """Check that a user can add what the routes return, unless the towers were chosen, fusions or not."""
    for name, fusion in matcher.fusions.items():
        if not is_chosen and not _is_sum(fusion):
            what = f"kind={fusion.kind}" if fusion.kind not in (FIXED_SUM, LEARNED_SUM) else f"center={fusion.center}"
            raise ValueError(
                f"fusion '{name}': {what} is no weighted sum, and no module of sentence-transformers computes it; "
                f"name the towers to export them without it: towers=[{','.join(names)}]"
            )


def _is_sum(fusion: Fusion) -> bool:
    return fusion.kind in (FIXED_SUM, LEARNED_SUM) and fusion.center is None


def _choose_routes(specs: Mapping[str, TowerSpec], names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the tower of each task and modality, as `embed_query` and `embed_products` choose it, if exported."""
    modalities, routes = tower_modalities(specs), {}
    for task, side in TASKS.items():
        for modality in (IMAGE, TEXT):
            name = find_text_tower(modalities, side) if modality == TEXT else field_name(side, modality)
            if name is not None and name in names:
                routes[task, modality] = name
    return routes


def _write(matcher: Matcher, names: Sequence[str], routes: Mapping[tuple[str, str], str], folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    mapping: dict[tuple[str | None, str | tuple[str, ...] | None], str] = {(name, None): name for name in names}
    for key, name in routes.items():
        mapping[key] = name
    for modality in (IMAGE, TEXT):  # without a task, where both have the same tower and no prompt
        found = {routes.get((task, modality)) for task in TASKS} - {None}
        if len({matcher.owner_of[str(name)] for name in found}) == 1 and not found & matcher.prompts.keys():
            mapping[None, modality] = str(next(iter(found)))
    prompts = {name: matcher.prompts.get(name, "") for name in names}
    prompts |= {task: matcher.prompts.get(routes.get((task, TEXT), ""), "") for task in TASKS}
    with TemporaryDirectory() as scratch:
        owners = sorted({matcher.owner_of[name] for name in names})
        modules = {owner: _modules_of(owner, matcher.tower(owner), Path(scratch) / owner) for owner in owners}
        router = Router(
            {name: modules[matcher.owner_of[name]] for name in names}, allow_empty_key=False, route_mappings=mapping
        )
        model = SentenceTransformer(modules=[router], prompts=prompts, similarity_fn_name="cosine", device="cpu")
        model.save_pretrained(str(folder), create_model_card=False)


def _modules_of(name: str, tower: Tower, folder: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    folder.mkdir()
    try:
        form = tower.encoder.write_hf(folder)
    except ValueError as error:
        raise ValueError(f"tower '{name}': {error}; format={FORMAT} cannot express it") from error
    output_name = "token_embeddings" if form.pooling else "sentence_embedding"
    modules: list[Any] = [
        Transformer(
            str(folder),
            modality_config={form.modality: {"method": "forward", "method_output_name": form.output}},
            module_output_name=output_name,
            processing_kwargs={form.modality: dict(form.processing)} if form.processing else None,
        )
    ]
    if form.pooling:
        modules.append(Pooling(form.width, pooling_mode=POOLINGS[form.pooling]))
    for linear, activation in _layers_of(form, tower):
        bias = None if linear.bias is None else linear.bias.detach().clone()
        sizes = linear.in_features, linear.out_features
        modules.append(Dense(*sizes, bias is not None, activation, linear.weight.detach().clone(), bias))
    return [*modules, Normalize()]


def _layers_of(form: HfForm, tower: Tower) -> Iterator[tuple[nn.Linear, nn.Module]]:
    yield from form.layers
    if tower.projection is not None:
        yield tower.projection, nn.Identity()


def _compare(folder: Path, model: LoadedModel, names: Sequence[str], prompts: Mapping[str, str]) -> dict[str, float]:
    """Return by tower the largest difference of a number of a vector; see `MAX_DIFFERENCE`."""
    from sentence_transformers import SentenceTransformer

    loaded, differences = SentenceTransformer(str(folder), device="cpu", local_files_only=True), {}
    for name in names:
        spec = model.encoders[name].spec
        if isinstance(spec, ImageSpec):
            images = _images(spec, model.config["data"]["shards"]["max_image_side"])
            found, wanted = loaded.encode(images, task=name), model.embed_images(images, name)
        else:
            found = loaded.encode(TEXTS, task=name, prompt=prompts.get(name))
            wanted = model.embed_texts(TEXTS, name)
        differences[name] = float(np.abs(found - wanted).max())
        if not differences[name] <= MAX_DIFFERENCE:  # nan too
            raise ValueError(
                f"tower '{name}': in sentence-transformers a vector differs by {differences[name]:.1e}, more than "
                f"{MAX_DIFFERENCE:.0e}; format={FORMAT} cannot express it"
            )
    return differences


def _images(spec: ImageSpec, max_side: int | None) -> list[Image.Image]:
    """Return square, wide, tall, small and large images of sizes where a crop is rounded the same here and there.

    None has a side over `max_side`: `mim_lightning.load` scales larger ones, as `prepare` does.
    """
    side, rng, images = max(spec.size), np.random.default_rng(0), []
    for coarse, height, width in ((3, 1, 1), (16, 1, 1), (16, 1, 2), (8, 3, 1), (16, 0.5, 0.75), (64, 4, 3)):
        scale = min(side, (max_side or 4 * side) / max(height, width))
        noise = Image.fromarray(rng.integers(0, 256, (coarse, coarse, 3), np.uint8))
        size = _whole_pixels(round(height * scale), round(width * scale), spec)
        images.append(noise.resize(size[::-1], Image.Resampling.BICUBIC))
    return images


def _whole_pixels(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Return the next smaller size whose central square is rounded down and has the same margin on both sides."""
    if spec.resize_mode != "shortest":
        return height, width
    for shorter in range(min(height, width), 1, -1):
        crop = math.floor(shorter * spec.crop_fraction + 1e-6)
        if (shorter - crop) % 2 == 0 and shorter * spec.crop_fraction - crop < 0.49:
            height, width = (side * shorter // min(height, width) for side in (height, width))
            return height - (height - crop) % 2, width - (width - crop) % 2
    return height, width


def _describe_loading(written: RoutedModel, matcher: Matcher, names: Sequence[str]) -> Iterator[str]:
    methods = {"query": "encode_query", "document": "encode_document"}
    yield "\n## Load it\n"
    yield "```python\nfrom sentence_transformers import SentenceTransformer\n"
    yield 'model = SentenceTransformer("<this folder>")  # no trust_remote_code'
    for (task, modality), name in written.routes.items():
        inputs = 'Image.open("photo.jpg")' if modality == IMAGE else '"in blue"'
        yield f"{name}_vectors = model.{methods[task]}([{inputs}])"
    yield "```\n"
    yield f"Any tower by its name: `model.encode(inputs, task=<{' or '.join(names)}>, prompt_name=<the same>)`."
    for name, fusion in matcher.fusions.items():
        if _is_sum(fusion) and set(fusion) <= set(names):
            total = " + ".join(f"{weight:.9g} * {part}_vectors" for part, weight in fusion.weights.items())
            yield f"\nFusion `{name}` is no route: add the vectors, `v = {total}`, and divide by `norm(v)`."
        else:
            yield f"\nFusion `{name}` is not in this folder; `mim_lightning.load` of the checkpoint has it."
    yield "\nLargest difference of a number of a vector from `mim_lightning.load`:\n"
    yield "| tower | difference |\n| --- | ---: |"
    for name, difference in written.differences.items():
        yield f"| {name} | {difference:.1e} |"
    if any(isinstance(matcher.input_specs()[name], ImageSpec) for name in names):
        yield "\nPictures are compared in sizes whose crop has whole pixels; in others it may lie one pixel aside."
        if max_side := written.facts.config["data"]["shards"]["max_image_side"]:
            yield f"Scale larger pictures to {max_side} pixels of the longer side first, as in training."
        yield "Turn pictures upright first (`ImageOps.exif_transpose`)."


def _require_extra() -> None:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ValueError(f"format={FORMAT}: {error.name} is not installed; install the extra: {EXTRA}") from error
    version = sentence_transformers.__version__
    if int(version.split(".")[0]) < 6:
        raise ValueError(f"format={FORMAT}: sentence-transformers {version} is too old, 6 is needed; {EXTRA}")
