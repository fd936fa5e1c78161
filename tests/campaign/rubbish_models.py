"""Malformed checkpoints and exports: the file, what a checkpoint holds, its config, and the files of an export."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.campaign.malformed import REMOVED, Malformed, edit, flip, json_at, of_file, of_json, write
from tests.campaign.rubbish_shards import Touch

LAST = "last.ckpt"
SECTION, STATE = "mim_lightning", "state_dict"
MODEL = (SECTION, "config", "model")
IMAGE = (*MODEL, "towers", "query_image", "encoder")
TEXT = (*MODEL, "towers", "product_text", "encoder")
WEIGHT = "matcher.towers.query_image.project.weight"


def content(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change what a checkpoint holds; it is a sound file afterwards."""

    def damage(folder: Path) -> None:
        found = torch.load(folder / LAST, weights_only=True)
        changed = change(found)
        torch.save(found if changed is None else changed, folder / LAST)

    return damage


def at(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        if value is REMOVED:
            del found[keys[-1]]
        else:
            found[keys[-1]] = value

    return content(change)


def tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    def damage(found: Any) -> None:
        name = first_weight(found)
        found[STATE][name] = change(found[STATE][name])

    return content(damage)


def first_weight(found: Any) -> str:
    return next(name for name, value in found[STATE].items() if name.startswith("matcher.") and value.ndim == 2)


def without_tensor(found: Any) -> None:
    del found[STATE][first_weight(found)]


def more_tensors(found: Any) -> None:
    found[STATE]["matcher.towers.query_image.more"] = torch.zeros(3)


def pickled(value: Any) -> bytes:
    out = io.BytesIO()
    pickle.dump(value, out)
    return out.getvalue()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def without_part(name: str) -> Callable[[bytes], bytes]:
    """Return an edit of a zip file to one without a part."""

    def change(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for entry in old.infolist():
                if not entry.filename.endswith(name):
                    new.writestr(entry.filename, old.read(entry))
        return out.getvalue()

    return change


def tarred(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("last.ckpt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def deep(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


def cyclic() -> Any:
    found: dict[str, Any] = {}
    found["a"] = found
    return found


NAN = float("nan")
CHECKPOINTS = [
    *of_file("a checkpoint", LAST),
    Malformed("a checkpoint is a pickle that runs code", write(LAST, pickled(Touch())), LAST),
    Malformed("a checkpoint holds code that runs", write(LAST, saved({STATE: Touch()})), LAST),
    Malformed("a checkpoint is a pickled dict", write(LAST, pickled({STATE: {}})), LAST),
    Malformed("a checkpoint is a tar file", edit(LAST, tarred), LAST),
    Malformed("a checkpoint lacks its pickle", edit(LAST, without_part("data.pkl")), LAST),
    Malformed("a checkpoint lacks a tensor's bytes", edit(LAST, without_part("data/7")), LAST),
    Malformed("a checkpoint has a changed byte in a part that is not read", flip(LAST, 0.7), LAST, "0c673ae931d39235"),
    Malformed("a checkpoint is a list", content(lambda found: [1, 2]), LAST),
    Malformed("a checkpoint is a tensor", content(lambda found: torch.zeros(3)), LAST),
    Malformed("a checkpoint of other code", content(lambda found: {STATE: found[STATE]}), LAST),
    Malformed("the part of this project is null", at(SECTION, value=None), LAST),
    Malformed("the part of this project is a text", at(SECTION, value="x"), LAST),
    *(
        Malformed(f"{key} is {said}", at(*where, key, value=value), LAST)
        for where, key, said, value in (
            ((SECTION,), "config", "missing", REMOVED),
            ((SECTION,), "config", "a text", "x"),
            ((SECTION,), "config", "nested 40 deep", deep(40)),
            ((SECTION,), "config", "nested in itself", cyclic()),
            ((SECTION,), "config", "empty", {}),
            ((SECTION,), "assets", "missing", REMOVED),
            ((SECTION,), "assets", "a list", []),
            ((SECTION,), "assets", "of a path outside", {"query_image": {"../x": "y"}}),
            ((SECTION,), "assets", "of bytes", {"product_text": {"tokenizer.json": b"x"}}),
            ((SECTION,), "assets", "of half a tokenizer", {"query_image": {}, "product_text": {"tokenizer.json": '{"a"'}}),
            ((SECTION,), "fingerprint", "missing", REMOVED),
            ((SECTION,), "fingerprint", "of another model", "xxh3-0000000000000000"),
            ((SECTION,), "fingerprint", "of another scheme", "sha9-00"),
            ((SECTION,), "fingerprint", "a number", 7),
            ((), STATE, "missing", REMOVED),
            ((), STATE, "a list", []),
            ((), STATE, "of numbers", {"a": 1}),
            ((), STATE, "empty", {}),
        )
    ),
    Malformed("a tensor is missing", content(without_tensor), LAST),
    Malformed("a tensor too many", content(more_tensors), LAST),
    *(
        Malformed(f"a tensor is {said}", tensor(change), LAST)
        for said, change in (
            ("transposed", lambda found: found.T.contiguous() if found.shape[0] != found.shape[1] else found[:-1]),
            ("of integers", lambda found: found.long()),
            ("complex", lambda found: found.to(torch.complex64)),
            ("of NaN", lambda found: found * NAN),
            ("sparse", lambda found: found.to_sparse()),
            ("of another value", lambda found: found + 1),
            ("a scalar", lambda found: found.sum()),
            ("empty", lambda found: found[:0]),
            ("on no device", lambda found: found.to("meta")),
        )
    ),
    *(
        Malformed(f"config: {said}", at(*keys, value=value), LAST)
        for said, keys, value in (
            ("a class of the system", (*IMAGE, "_target_"), "os.system"),
            ("a class that there is not", (*IMAGE, "_target_"), "mim_lightning.encoders.Nothing"),
            ("a class for another place", (*IMAGE, "_target_"), "mim_lightning.data.ManifestSource"),
            ("a class that is a number", (*IMAGE, "_target_"), 7),
            ("arguments by position", (*IMAGE, "_args_"), [1]),
            ("an interpolation", (*IMAGE, "width"), "${oc.env:HOME}"),
            ("an unknown key", (*IMAGE, "wdith"), 64),
            ("a key that is a number", (*MODEL, "towers", 7), {}),
            ("a width that is a text", (*IMAGE, "width"), "wide"),
            ("a width of 0", (*IMAGE, "width"), 0),
            ("a negative width", (*IMAGE, "width"), -64),
            ("a width of NaN", (*IMAGE, "width"), NAN),
            ("a width of 10**12", (*IMAGE, "width"), 10**12),
            ("an image of 0 pixels", (*IMAGE, "image_size"), 0),
            ("10**12 layers", (*TEXT, "num_layers"), 10**12),
            ("-1 layers", (*TEXT, "num_layers"), -1),
            ("10**13 words", (*TEXT, "vocabulary"), 10**13),
            ("0 words", (*TEXT, "vocabulary"), 0),
            ("0 tokens", (*TEXT, "max_length"), 0),
            ("no encoder", IMAGE, None),
            ("no towers", (*MODEL, "towers"), {}),
            ("towers that are a list", (*MODEL, "towers"), []),
            ("a tower tied to itself", (*MODEL, "tied"), {"query_image": "query_image"}),
            ("a tower tied to none", (*MODEL, "tied"), {"query_image": "nothing"}),
            ("a fusion of no tower", (*MODEL, "fusions"), {"query": {"nothing": 1.0}}),
            ("a fusion of NaN", (*MODEL, "fusions"), {"query": {"query_image": NAN}}),
            ("fusions that are a text", (*MODEL, "fusions"), "x"),
            ("a model that is null", MODEL, None),
            ("data that are null", (SECTION, "config", "data"), None),
            ("callbacks that are a list", (SECTION, "config", "callbacks"), []),
        )
    ),
]  # fmt: skip

FACTS, WEIGHTS, PRINT = "config.json", "model.safetensors", "fingerprint"


def safetensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the header of the weights."""

    def changed(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return edit(WEIGHTS, changed)


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


EXPORTS = [
    *of_file("the facts of an export", FACTS, left_out=("missing", "a link to itself")),
    *of_json("the facts of an export", FACTS),
    *of_file("the fingerprint of an export", PRINT, left_out=("missing", "a link to itself", "without its last byte")),
    *of_file("the weights of an export", WEIGHTS),
    Malformed("weights with a header of 2**60 bytes", edit(WEIGHTS, lambda data: struct.pack("<Q", 2**60) + data[8:]), WEIGHTS),
    Malformed("weights with a header that is no JSON", edit(WEIGHTS, lambda data: data[:8] + b"x" + data[9:]), WEIGHTS),
    Malformed("weights with a changed byte", flip(WEIGHTS, 0.8), ""),
    Malformed("weights with offsets that overlap", safetensors(lambda header: first(header).update(data_offsets=[0, 4])), WEIGHTS),
    Malformed("weights with offsets beyond the file", safetensors(lambda header: first(header).update(data_offsets=[0, 2**50])), WEIGHTS),
    Malformed("weights of an unknown type", safetensors(lambda header: first(header).update(dtype="F1")), WEIGHTS),
    Malformed("weights of another shape", safetensors(lambda header: first(header).update(shape=[1])), WEIGHTS),
    Malformed("weights of a negative shape", safetensors(lambda header: first(header).update(shape=[-1])), WEIGHTS),
    Malformed("weights under another name", safetensors(lambda header: header.update(x=header.pop(next(n for n in header if n != "__metadata__")))), WEIGHTS),
    *(
        Malformed(f"{key} of an export is {said}", json_at(FACTS, *keys, key, value=value), FACTS)
        for keys, key, said, value in (
            ((), "format", "from the future", 99),
            ((), "format", "missing", REMOVED),
            ((), "dimension", "a text", "many"),
            ((), "dimension", "of another model", 7),
            ((), "tower_names", "a number", 7),
            ((), "tower_names", "of another model", ["nothing"]),
            ((), "precision", "unknown", "int1"),
            ((), "precision", "a list", []),
            ((), "digest", "of another model", "xxh3-0"),
            ((), "digest", "null", None),
            ((), "preprocessing", "a path outside", {"../../etc": "x"}),
            ((), "preprocessing", "null", None),
            ((), "inputs", "a list", []),
            ((), "onnx", "a number by tower", {"query_image": 7}),
            ((), "config", "null", None),
            (("config", "model"), "towers", "null", None),
        )
    ),
    Malformed("an asset is a link that leads out", lambda folder: ((folder / "query_image").mkdir(exist_ok=True), (folder / "query_image/x.json").symlink_to("/etc/passwd")), ""),
    Malformed("an asset is not UTF-8", lambda folder: ((folder / "product_text").mkdir(exist_ok=True), (folder / "product_text/tokenizer.json").write_bytes(b"\xff\xfe")), ""),
    Malformed("an asset is a pipe", lambda folder: ((folder / "product_text").mkdir(exist_ok=True), os.mkfifo(folder / "product_text/tokenizer.json")), ""),
]  # fmt: skip
