"""Small encoders of our own for the synthetic shop, tests and first runs: no download, fast on two CPU cores.

Neither has batch statistics, so features do not depend on how a batch is split over processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from mim_lightning.encoders.interface import Encoder, ImageEncoder, Preprocessing, canonical_text
from mim_lightning.types import ImageSpec, TextSpec, TowerInput

PADDING_ID, EMPTY_ID, NUM_SPECIAL = 0, 1, 2
WORD = re.compile(r"[^\W_]+")
MAX_LAYERS = 1_000  # a file may ask for any number, and each takes time


class TinyImage(ImageEncoder):
    """A small residual convolutional network with group norm; features are averaged over the image.

    Args:
        image_size: side in pixels, a multiple of 32.
        width: features; the four stages have an eighth, a quarter, a half and all of it as channels.

    Raises:
        ValueError: `image_size` or `width` is not such a multiple.
    """

    def __init__(self, image_size: int = 64, width: int = 256) -> None:
        if image_size % 32 or width % 64:
            raise ValueError(f"encoder 'tiny_image': image_size {image_size} must divide by 32, width {width} by 64")
        spec = ImageSpec(size=(image_size, image_size), resize_mode="squash")
        super().__init__(Preprocessing(spec, mean=(0.5,) * 3, std=(0.5,) * 3))
        self.width = width
        channels = (width // 8, width // 4, width // 2, width)
        stages: list[nn.Module] = [_stem(channels[0]), _ConvBlock(channels[0])]
        for before, after in pairwise(channels):
            stages += [_norm(before), nn.ReLU(), nn.Conv2d(before, after, 2, stride=2), _ConvBlock(after)]
        self.network = nn.Sequential(*stages, _norm(width), nn.ReLU())
        self._is_checkpointed = False

    def forward(self, inputs: TowerInput) -> Tensor:
        images = self.normalize(inputs)
        if self._is_checkpointed:
            return checkpoint_sequential(self.network, len(self.network), images, use_reentrant=False).mean((2, 3))
        return self.network(images).mean((2, 3))

    def checkpoint_activations(self) -> None:
        self._is_checkpointed = True

    def layers(self) -> list[list[str]]:
        # stem; a block, then three times norm, step of stride 2 and block; the last norm
        names = [name for name, _ in self.named_parameters()]
        stages = [0 if idx == 0 else 5 if idx > 13 else 1 + (idx + 2) // 4 for idx in map(_position, names)]
        return [[name for name, found in zip(names, stages, strict=True) if found == stage] for stage in range(6)]

    def export_assets(self) -> dict[str, str]:
        return {}  # its arguments say it all

    def describe_preprocessing(self) -> str:
        return canonical_text({"design": "tiny_image 1", "preprocessing": self.preprocessing.to_json()})


def _position(name: str) -> int:
    """Return the position of a parameter's module in the network."""
    return int(name.split(".")[1])


def _norm(channels: int) -> nn.Module:
    # eight groups: a single one is faster, but learns patterns more slowly
    return nn.GroupNorm(8, channels)


def _stem(channels: int) -> nn.Module:
    """Two overlapping steps of stride 2: patches of stride 4 are faster, but learn patterns more slowly."""
    first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    return nn.Sequential(first, _norm(16), nn.ReLU(), nn.Conv2d(16, channels, 3, stride=2, padding=1))


class _ConvBlock(nn.Module):
    """x + conv(relu(norm(x))), of (n, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.conv(F.relu(self.norm(images)))


@dataclass(frozen=True)
class HashTokenize:
    """Texts to ids (n, L): each lower-case word is hashed into one of the buckets, without a vocabulary file."""

    max_length: int
    num_buckets: int

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows = [self._ids(text) for text in texts]
        ids = torch.full((len(rows), max(map(len, rows), default=1)), PADDING_ID)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = torch.tensor(found)
        return {"input_ids": ids}

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words of each text, including those beyond `max_length`."""
        return [len(WORD.findall(text)) for text in texts]

    def _ids(self, text: str) -> list[int]:
        words = WORD.findall(text.lower())[: self.max_length]
        # crc32 because hash() differs between processes
        return [NUM_SPECIAL + crc32(word.encode()) % self.num_buckets for word in words] or [EMPTY_ID]


class TinyText(Encoder):
    """A two-layer transformer over hashed words; features are averaged over the words.

    Args:
        max_length: words kept of a text.
        vocabulary: rows of the embedding table; words in the same bucket share a row.
        width: features, a multiple of 32.
        num_layers: transformer layers.

    Raises:
        ValueError: `width` is not such a multiple, or `vocabulary` leaves no bucket.
    """

    spec: TextSpec

    def __init__(self, max_length: int = 32, vocabulary: int = 4096, width: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        if width % 32 or vocabulary <= NUM_SPECIAL:
            raise ValueError(f"encoder 'tiny_text': width {width} must divide by 32, vocabulary {vocabulary} exceed 2")
        if not 1 <= num_layers <= MAX_LAYERS or max_length < 1:
            given = f"num_layers {num_layers}, max_length {max_length}"
            raise ValueError(f"encoder 'tiny_text': {given}: give 1 to {MAX_LAYERS:,} layers, and a length above 0")
        tokenize = HashTokenize(max_length, vocabulary - NUM_SPECIAL)
        self.spec = TextSpec(tokenize, max_length, tokenize.count)
        self.width = width
        self.words = nn.Embedding(vocabulary, width, padding_idx=PADDING_ID)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.blocks = nn.ModuleList(_TextBlock(width, num_heads=width // 32) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self._is_checkpointed = False

    def forward(self, inputs: TowerInput) -> Tensor:
        assert isinstance(inputs, dict), "text encoders take token tensors"
        ids = inputs["input_ids"]
        is_word = ids != PADDING_ID  # (n, L)
        words = self.words(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            if self._is_checkpointed:
                words = checkpoint(block, words, is_word, use_reentrant=False)
            else:
                words = block(words, is_word)
        weights = is_word.unsqueeze(-1).to(words.dtype)
        return (self.norm(words) * weights).sum(1) / weights.sum(1)

    def checkpoint_activations(self) -> None:
        self._is_checkpointed = True

    def describe_preprocessing(self) -> str:
        tokenize = {"words": WORD.pattern, "hash": "crc32", "buckets": self.words.num_embeddings - NUM_SPECIAL}
        return canonical_text({"design": "tiny_text 1", **tokenize, "max_length": self.spec.max_length})


class _TextBlock(nn.Module):
    """Pre-norm attention and MLP over words (n, L, width); padding is not attended to."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, words: Tensor, is_word: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(words)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (n, heads, L, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=is_word[:, None, None, :])
        words = words + self.out(mixed.transpose(1, 2).flatten(2))
        return words + self.mlp(self.mlp_norm(words))
