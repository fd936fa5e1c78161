"""The fingerprint of a matcher: embeddings of equal fingerprints may be compared.

Checkpoint, embeddings and index store it, and a mismatch raises an error. Its form is that of
`io.digest`; files of versions before 0.2 have sixteen digits of SHA-256, are verified by it and keep it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.encoders.interface import Encoder
from mim_lightning.io.digest import XXH3, digest_of
from mim_lightning.model.fusion import describe_fusions
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharding import whole


@torch.no_grad()
def fingerprint(matcher: Matcher, state: Mapping[str, Tensor] | None = None, like: str = XXH3) -> str:
    """Digest weights, adapter scales, preprocessing, tokenizers, ties, fusions, dimension; the device does not matter.

    A model in another precision, as during training in bf16-true, is digested as it will be loaded: in float32.

    Args:
        matcher: the model.
        state: its state dict, where a file gets other weights than the model has at present.
        like: a fingerprint to compare with: the result is computed as that one was.
    """
    facts = {
        "owner_of": matcher.owner_of,
        "fusions": describe_fusions(matcher.fusions),
        "preprocessing": {
            name: matcher.tower(name).encoder.describe_preprocessing()
            for name in sorted(set(matcher.owner_of.values()))
        },
    }
    if matcher.fields:  # else every tower reads the field of its own name, as when there was nothing else
        facts["fields"] = matcher.fields
    if matcher.prompts:  # likewise
        facts["prompts"] = matcher.prompts
    scales = {name: matcher.tower(name).adapter_scale for name in sorted(matcher.towers)}
    if any(scales.values()):  # likewise; no tensor holds them
        facts["adapter_scales"] = {name: scale for name, scale in scales.items() if scale}
    is_plain = any(parameter.dtype == torch.float32 for parameter in matcher.parameters())
    tensors = matcher.state_dict() if state is None else state
    floats = (
        (name, stored if is_plain or not stored.is_floating_point() else stored.float())
        for name, stored in sorted(tensors.items())
    )
    return digest_of(_chunks(facts, floats), like, hashlib.sha256)


@torch.no_grad()
def encoder_fingerprint(encoder: Encoder, conditions: Mapping[str, Any], like: str = XXH3) -> str:
    """Digest what decides an encoder's features of an input: its weights, preprocessing, and the conditions."""
    kind = type(encoder)
    facts = {"encoder": f"{kind.__module__}.{kind.__qualname__}", "preprocessing": encoder.describe_preprocessing()}
    return digest_of(_chunks({**facts, **conditions}, sorted(encoder.state_dict().items())), like, hashlib.sha256)


def _chunks(facts: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | np.ndarray]:
    yield json.dumps(facts, sort_keys=True).encode()
    for name, tensor in tensors:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        # reinterpreted as bytes: NumPy has no bfloat16
        yield whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
