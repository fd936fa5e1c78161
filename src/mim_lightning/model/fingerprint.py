"""The fingerprint of a matcher: equal fingerprints mean that embeddings may be compared.

A Matcher comes in, sixteen hexadecimal digits go out; checkpoint, embeddings and index carry them, and whoever
joins two of those compares them first.
"""

from __future__ import annotations

import hashlib
import json

import torch

from mim_lightning.model.matcher import Matcher


@torch.no_grad()
def fingerprint(matcher: Matcher) -> str:
    """Digest weights, preprocessing, tokenisers, ties, fusions and dimension; the device does not matter."""
    digest = hashlib.sha256()
    facts = {
        "owner_of": matcher.owner_of,
        "fusions": matcher.fusions,
        "preprocessing": {
            name: matcher.tower(name).encoder.describe_preprocessing()
            for name in sorted(set(matcher.owner_of.values()))
        },
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(matcher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # reinterpreted as bytes: NumPy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
