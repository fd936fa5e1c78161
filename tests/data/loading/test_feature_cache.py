"""Cached features: read by content from several files, also by a pickled copy; damaged files are found and removed."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.data.loading.feature_cache import (
    FEATURES,
    KEY_BYTES,
    KEYS,
    FeatureCacheSettings,
    FeatureTable,
    input_key,
    list_features,
    prompts_of,
    remove_damaged,
    write_features,
)
from mim_lightning.encoders.interface import PromptedTokenize
from mim_lightning.encoders.tiny import HashTokenize
from mim_lightning.types import ImageSpec, TextSpec


def test_features_are_read_by_key_in_any_order(tmp_path: Path) -> None:
    # keys that end or begin with zeros, which NumPy's texts do not show
    keys = [bytes(16), b"\0" * 15 + b"a", b"a" + b"\0" * 15, *(input_key([str(number)], [""]) for number in range(50))]
    features = torch.randn(len(keys), 3, generator=torch.Generator().manual_seed(0))
    write_features(tmp_path, keys[:20], features[:20])
    write_features(tmp_path, keys[20:], features[20:])
    table = FeatureTable(tmp_path, list_features(tmp_path), 3)
    order = np.random.default_rng(0).permutation(len(keys))
    for copy in (table, pickle.loads(pickle.dumps(table))):
        found_ND, is_found = copy.read([keys[idx] for idx in order])
        assert torch.equal(found_ND, features[order]) and is_found.all()
        found_ND, is_found = copy.read([b"?" * 16, keys[5]])
        assert is_found.tolist() == [False, True] and torch.equal(found_ND[1], features[5])
        assert copy.keys() == {*keys} and len(copy) == len(keys)
    assert FeatureTable(tmp_path, [], 3).read(keys[:1])[1].tolist() == [False]


def test_keys_are_of_the_content_and_its_kind() -> None:
    values = [["a"], [b"a"], ["a", "b"], ["ab"], ["a", ""], ["", "a"], [""], [b""]]
    assert len({input_key(value, [""] * len(value)) for value in values}) == len(values)
    assert input_key(["b"], ["a"]) == input_key(("b",), ["a"]) != input_key(["ab"], [""])
    assert input_key([b"b"], ["a"]) == input_key([b"b"], [""]) != input_key(["b"], [""])
    tokenize = HashTokenize(8, 20)
    specs = [ImageSpec((8, 8)), TextSpec(tokenize, 8), TextSpec(PromptedTokenize(tokenize, "query: "), 8)]
    assert prompts_of(specs) == ["", "", "query: "]


def test_writing_the_same_again_is_one_file_and_damage_is_found(tmp_path: Path) -> None:
    keys = [input_key([str(number)], [""]) for number in range(9)]
    features = torch.rand(9, 4)
    first = write_features(tmp_path, keys, features)
    assert write_features(tmp_path, keys[::-1], features.flip(0)) == first
    others = [write_features(tmp_path, keys[:number], features[:number]) for number in (3, 4, 5)]
    path = tmp_path / f"{others[0]}{FEATURES}"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    (tmp_path / f"{others[1]}{FEATURES}").unlink()
    (tmp_path / f"{others[2]}{KEYS}").write_bytes(b"half")
    assert sorted(remove_damaged(tmp_path, 4)) == sorted(others)
    assert list_features(tmp_path) == [first] and not list(remove_damaged(tmp_path, 4))
    assert [*remove_damaged(tmp_path, 5)] == [first]  # of another width


def test_features_of_former_versions_are_read_and_verified(tmp_path: Path) -> None:
    """Their names are BLAKE2b of dtype, shape and content of the sorted keys, then of the features."""
    keys = np.sort(np.frombuffer(b"".join(input_key([text], [""]) for text in "ab"), dtype=f"S{KEY_BYTES}"))
    features = np.random.default_rng(0).random((2, 4), dtype=np.float32)
    content = b"|S16 (2,)" + keys.tobytes() + b"<f4 (2, 4)" + features.tobytes()
    name = hashlib.blake2b(content, digest_size=8).hexdigest()
    for suffix, array in ((KEYS, keys), (FEATURES, features)):
        np.save(tmp_path / f"{name}{suffix}", array)
    assert list_features(tmp_path) == [name] and not list(remove_damaged(tmp_path, 4))
    np.save(tmp_path / f"{name}{FEATURES}", features + 1)
    assert [*remove_damaged(tmp_path, 4)] == [name]


def test_a_size_that_is_none_is_named() -> None:
    assert FeatureCacheSettings(max_size="1.5MB").limit == 1_500_000
    with pytest.raises(ValueError, match=r"data\.feature_cache\.max_size=much: give bytes, or a size such as 20GB"):
        FeatureCacheSettings(max_size="much")
