"""The embeddings of an evaluation in one safetensors file: for fusion sweeps and maps, without the model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.metrics import EmbeddingTable
from mim_lightning.model.fusion import Fusion, Fusions, as_fusion, describe_fusions

EMBEDDINGS_FILE = "embeddings.safetensors"


@dataclass(frozen=True)
class EvaluationEmbeddings:
    """Embeddings of queries and gallery by tower, with fusions and fingerprint of the model."""

    queries: EmbeddingTable
    gallery: EmbeddingTable
    fusions: Fusions
    fingerprint: str
    fields: dict[str, list[str]] = field(default_factory=dict)  # of towers that read others than their name says


def write_embeddings(folder: Path, embeddings: EvaluationEmbeddings) -> None:
    """Write the embeddings into an evaluation folder."""
    tensors = {
        f"{side}/{name}": tensor.cpu().contiguous()
        for side, table in (("queries", embeddings.queries), ("gallery", embeddings.gallery))
        for name, tensor in _flat(table).items()
    }
    width = next(iter(embeddings.queries.vectors.values())).shape[1]
    fusions = {name: as_fusion(name, given, width) for name, given in embeddings.fusions.items()}
    for name, fusion in fusions.items():
        tensors |= {f"fusions/{name}/{key}": tensor.contiguous() for key, tensor in fusion.state_dict().items()}
    facts = {"fusions": json.dumps(describe_fusions(fusions)), "fingerprint": embeddings.fingerprint}
    if embeddings.fields:
        facts["fields"] = json.dumps(embeddings.fields)
    with atomic_write(folder / EMBEDDINGS_FILE) as partial:
        save_file(tensors, partial, metadata=facts)


def read_embeddings(folder: Path) -> EvaluationEmbeddings:
    """Read the embeddings of an evaluation folder.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / EMBEDDINGS_FILE
    if not path.exists():
        raise ValueError(
            f"{path}: no such file; the evaluation stored no embeddings (callbacks.retrieval_eval.max_kept_rows)"
        )
    with errors_as_damaged_file(path, "evaluate the checkpoint again"):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata()
        queries, gallery = _table(tensors, "queries"), _table(tensors, "gallery")
        width = next(iter(queries.vectors.values())).shape[1]
        fusions = {name: Fusion(name, config, width) for name, config in json.loads(facts["fusions"]).items()}
        for name, fusion in fusions.items():
            prefix = f"fusions/{name}/"
            state = {key.removeprefix(prefix): part for key, part in tensors.items() if key.startswith(prefix)}
            fusion.load_state_dict(state)
            fusion.requires_grad_(False).eval()
        fields = json.loads(facts.get("fields", "{}"))
        return EvaluationEmbeddings(queries, gallery, fusions, facts["fingerprint"], fields)


def _flat(table: EmbeddingTable) -> dict[str, Tensor]:
    parts = {"vectors": table.vectors, "present": table.present, "columns": table.columns}
    flat = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return flat | {"row_keys": table.row_keys}


def _table(tensors: dict[str, Tensor], side: str) -> EmbeddingTable:
    def part(name: str) -> dict[str, Tensor]:
        prefix = f"{side}/{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    return EmbeddingTable(tensors[f"{side}/row_keys"], part("vectors"), part("present"), part("columns"))
