"""Fusions: named combinations of towers, which may be used wherever a tower may.

They are computed from the embeddings of the towers, so they can change without encoding again.
`model.fusions.<name>` has the weight of each tower by its name, and the options beside; `kind` is one of

fixed_sum          sum of the towers' vectors with these weights: the default
learned_sum        the same, the weights learned from there on
gate               weights of each row, computed from its vectors; in the beginning these
standardized_sum   no vector: similarities of each tower are standardized and added, see `score_combination`
score_product      likewise, multiplied

In the last two a query or a product is represented by the vectors of its towers. With
`center`, the mean of each tower is subtracted from its vectors first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_lightning.precision import at_least_float32
from mim_lightning.types import Embeddings

FIXED_SUM, LEARNED_SUM, GATE = "fixed_sum", "learned_sum", "gate"
STANDARDIZED_SUM, SCORE_PRODUCT = "standardized_sum", "score_product"
KINDS = (FIXED_SUM, LEARNED_SUM, GATE, STANDARDIZED_SUM, SCORE_PRODUCT)
SCORE_KINDS = (STANDARDIZED_SUM, SCORE_PRODUCT)
RUNNING, MEASURED = "running", "measured"
OPTIONS: dict[str, Any] = {"kind": FIXED_SUM, "center": None, "hidden_width": 32, "floor": 3.0}
OPTIONS_OF = {"hidden_width": (GATE,), "floor": (SCORE_PRODUCT,)}  # the others are for every kind
MEAN = "mean_"
MIN_MEAN_RATE = 0.01  # of the running mean: what the newest step adds; more in the first hundred


class Fusion(nn.Module):
    """A combination of towers; iterates over their names.

    Args:
        name: of the fusion, for errors.
        config: tower name -> weight, and `OPTIONS` that differ from their defaults.
        width: D of the vectors.

    Raises:
        ValueError: no tower, an option or value that is not known.
    """

    def __init__(self, name: str, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.options = {key: config.get(key, default) for key, default in OPTIONS.items()}
        self._given = dict(config)
        self._weights = {key: value for key, value in config.items() if key not in OPTIONS}
        self._validate()
        if self.kind == LEARNED_SUM:
            logs = {part: torch.tensor(math.log(weight)) for part, weight in self._weights.items()}
            self.log_weights = nn.ParameterDict({part: nn.Parameter(log) for part, log in logs.items()})
        if self.kind == GATE:
            hidden, num_parts = int(self.options["hidden_width"]), len(self._weights)
            num_inputs = num_parts * (width + 1)
            last = nn.Linear(hidden or num_inputs, num_parts)
            nn.init.zeros_(last.weight)  # in the beginning every row has the given weights
            nn.init.zeros_(last.bias)
            self.gate = nn.Sequential(nn.Linear(num_inputs, hidden), nn.ReLU(), last) if hidden else last
        # by part: sum of vectors since the last update of the means, and their count
        self._pending: dict[str, Tensor] = {}
        if self.center is not None:
            self.num_mean_updates: Tensor
            self.register_buffer("num_mean_updates", torch.zeros((), dtype=torch.int64))
            for part in self._weights:
                self.register_buffer(f"{MEAN}{part}", torch.zeros(width, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fusion:
        """Move or convert the module; means stay in float32, since half precision would round small updates away."""
        means = {key: value for key, value in self._buffers.items() if key.startswith(MEAN) and value is not None}
        super()._apply(fn, recurse)
        for key, before in means.items():
            after = self.get_buffer(key)
            if after.dtype.itemsize < before.dtype.itemsize:
                self._buffers[key] = before.to(after.device)
        return self

    def _validate(self) -> None:
        where = f"model.fusions.{self.name}"
        if not self._weights:
            raise ValueError(f"{where}: has no towers")
        choices = {"kind": KINDS, "center": (None, RUNNING, MEASURED)}
        for key, known in choices.items():
            if self.options[key] not in known:
                words = ", ".join("null" if value is None else value for value in known)
                raise ValueError(f"{where}.{key}={self.options[key]}: there are {words}")
        for key, kinds in OPTIONS_OF.items():
            if key in self._given and self.kind not in kinds:
                raise ValueError(f"{where}.{key}: is an option of kind={' and '.join(kinds)}, not of {self.kind}")
        hidden, floor = self.options["hidden_width"], self.options["floor"]
        if type(hidden) is not int or hidden < 0:
            raise ValueError(f"{where}.hidden_width={hidden}: give a whole number, 0 for a linear gate")
        if floor is not None and not (_is_number(floor) and floor > 0):
            raise ValueError(f"{where}.floor={floor}: give a number above 0, or null")
        for part, weight in self._weights.items():
            if not _is_number(weight):
                raise ValueError(f"{where}.{part}={weight}: give a number, the weight of the tower")
            if self.kind not in (FIXED_SUM, *SCORE_KINDS) and weight <= 0:
                raise ValueError(f"{where}.{part}={weight}: with kind={self.kind} give a weight above 0 to start from")
            if self.kind in SCORE_KINDS and weight < 0:
                raise ValueError(f"{where}.{part}={weight}: with kind={self.kind} give a weight of 0 or more")

    @property
    def kind(self) -> str:
        return str(self.options["kind"])

    @property
    def center(self) -> str | None:
        return self.options["center"]

    @property
    def needs_one_vector(self) -> bool:
        """Whether one vector a product is enough in an index; else it has one of each tower, side by side."""
        return self.kind not in SCORE_KINDS

    @property
    def index_width(self) -> int:
        """Width of a product's row in an index of this fusion."""
        return self.width * (1 if self.needs_one_vector else len(self))

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each tower: as given, or learned, of the same sum; those that a gate starts from."""
        if self.kind != LEARNED_SUM:
            return dict(self._weights)
        total = sum(self._weights.values())
        learned = self._learned_weights().tolist()
        return {part: total * weight for part, weight in zip(self._weights, learned, strict=True)}

    def with_weights(self, weights: Mapping[str, float]) -> Fusion:
        """Return the fixed sum with other weights of some towers, centered as this one."""
        config = {**self.weights} | ({"center": self.center} if self.center else {})
        changed = Fusion(self.name, config, self.width)
        changed._weights |= weights
        changed.load_state_dict({key: value for key, value in self.state_dict().items() if key in changed.state_dict()})
        return changed.eval()

    def describe(self) -> dict[str, Any]:
        """Return the config: of a fixed sum without options, the weights alone."""
        return {key: value for key, value in self._given.items() if key not in OPTIONS or value != OPTIONS[key]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __contains__(self, part: object) -> bool:
        return part in self._weights

    def __len__(self) -> int:
        return len(self._weights)

    def __bool__(self) -> bool:
        return True

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return the fused vectors (B, D) of unit length; of a row without one of the towers, those of the others.

        A combination of scores has no vector of its own: pairs are trained on its weighted sum.

        Args:
            vectors: (B, D) by tower, zero where absent; towers that are missing are absent from every row.
            present: (B,) bool by tower.
        """
        parts = [part for part in self._weights if part in vectors]
        # in float32: autocast would round weights and vectors
        with torch.autocast(vectors[parts[0]].device.type, enabled=False):
            centered = self.center_vectors({part: vectors[part] for part in parts}, present)
            if self.kind == LEARNED_SUM:
                learned = self._learned_weights().to(centered[parts[0]])
                weights = dict(zip(self._weights, learned, strict=True))
                terms = [weights[part] * centered[part] for part in parts]
            elif self.kind == GATE:
                rows_BP = self.row_weights(centered, present)
                columns = {part: rows_BP[:, idx, None] for idx, part in enumerate(sorted(self._weights))}
                terms = [columns[part] * centered[part] for part in parts]
            else:
                terms = [self._weights[part] * centered[part] for part in parts]
            # absent vectors are zero, so they add nothing
            total_BD = sum(terms)
            assert isinstance(total_BD, Tensor)
            return F.normalize(total_BD, dim=-1)

    def row_weights(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return a gate's weight (B, P) of each tower in alphabetical order, 0 where it is absent; they sum to 1."""
        first = next(iter(vectors.values()))
        parts = sorted(self._weights)  # an order that does not depend on that of the config
        none_B = first.new_zeros(len(first), dtype=torch.bool)
        present_BP = torch.stack([present.get(part, none_B) for part in parts], dim=1)
        inputs = [vectors[part] if part in vectors else torch.zeros_like(first) for part in parts]
        x_BE = torch.cat([*inputs, present_BP.to(first)], dim=1)
        for layer in self.gate if isinstance(self.gate, nn.Sequential) else (self.gate,):
            # in float32 whatever the weights are in, and where the vectors are
            x_BE = (
                F.linear(x_BE, layer.weight.to(x_BE), layer.bias.to(x_BE))
                if isinstance(layer, nn.Linear)
                else layer(x_BE)
            )
        logits_BP = x_BE + first.new_tensor([math.log(self._weights[part]) for part in parts])
        # a row without any tower has no vector to weigh; a softmax over nothing would be nan
        is_out_BP = ~present_BP & present_BP.any(dim=1, keepdim=True)
        return logits_BP.masked_fill(is_out_BP, -torch.inf).softmax(dim=1)

    def stack_parts(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of all towers side by side (B, P * D), in the order of the config, zero where absent."""
        first = next(vectors[part] for part in self._weights if part in vectors)
        centered = self.center_vectors({part: vectors[part] for part in self._weights if part in vectors}, present)
        return torch.cat([centered.get(part, torch.zeros_like(first)) for part in self._weights], dim=1)

    def center_vectors(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Subtract the mean of each tower from its vectors, if `center` says so, at unit length again.

        Running means are of the steps before this one, see `count_rows`.

        Source: Li et al. 2025, "Closing the Modality Gap for Mixed Modality Search" (GR-CLIP, arXiv 2507.19054).
        """
        if self.center is None:
            return dict(vectors)
        return {
            part: F.normalize(vectors_BD - self.mean_of(part).to(vectors_BD), dim=-1) * present[part][:, None]
            for part, vectors_BD in vectors.items()
        }

    @torch.no_grad()
    def _sum_rows(self, vectors_BD: Tensor, is_counted_B: Tensor) -> Tensor:
        """Return the sum of some rows and their number (D + 1,), which half precision would round."""
        vectors_BD = at_least_float32(vectors_BD)
        ones_B1 = is_counted_B[:, None].to(vectors_BD)
        return torch.cat([vectors_BD * ones_B1, ones_B1], dim=1).sum(dim=0)

    def count_rows(self, vectors: Mapping[str, Tensor], is_counted: Mapping[str, Tensor]) -> None:
        """Add the rows of a training batch to what `update_means` will take.

        Args:
            vectors: (B, D) by tower.
            is_counted: (B,) bool by tower: neither absent nor padding.
        """
        # not where a step is recomputed without gradient: its rows would count twice
        if not (self.training and self.center == RUNNING and torch.is_grad_enabled()):
            return
        for part in self._weights:
            if part in vectors:
                sums = self._sum_rows(vectors[part], is_counted[part])
                self._pending[part] = self._pending[part] + sums if part in self._pending else sums

    def mean_of(self, part: str) -> Tensor:
        """Return the mean (D,) that is subtracted from a tower's vectors."""
        return self.get_buffer(f"{MEAN}{part}")

    @torch.no_grad()
    def set_means(self, means: Mapping[str, Tensor]) -> None:
        """Take measured means (D,) by tower."""
        for part in self._weights:
            self.mean_of(part).copy_(means[part])
        self.num_mean_updates += 1

    def take_pending(self) -> Tensor | None:
        """Return what training has added since the last call, (P, D + 1) sums and counts; None: nothing."""
        if not self._pending:
            return None
        none = torch.zeros_like(next(iter(self._pending.values())))
        stacked = torch.stack([self._pending.get(part, none) for part in self._weights])
        self._pending = {}
        return stacked

    @torch.no_grad()
    def update_means(self, sums_PE: Tensor) -> None:
        """Move the running means towards those of a step, of the sums and counts (P, D + 1) of all its rows.

        A step with sums that are not finite is left out. Nothing waits for the device.
        """
        is_finite = sums_PE.isfinite().all()
        rate = (1 / (self.num_mean_updates + 1)).clamp(min=MIN_MEAN_RATE)
        for part, sums_E in zip(self._weights, sums_PE, strict=True):
            mean = self.mean_of(part)
            moved = mean.lerp((sums_E[:-1] / sums_E[-1]).to(mean), rate.to(mean))
            mean.copy_(torch.where(is_finite & (sums_E[-1] > 0), moved, mean))
        self.num_mean_updates += is_finite

    def _learned_weights(self) -> Tensor:
        return torch.stack([self.log_weights[part] for part in self._weights]).softmax(dim=0)


Fusions = Mapping[str, Fusion | Mapping[str, Any]]  # by name; a config stands for the fusion that it describes


def fuse(embeddings: Embeddings, fusions: Fusions) -> Embeddings:
    """Add the vectors of each fusion.

    A row without one of the towers is the fusion of the others; without any it has none. The paper's fusion is not
    public: the weighted sum is our choice.
    """
    vectors, present = dict(embeddings.vectors), dict(embeddings.present)
    for name, given in fusions.items():
        fusion = as_fusion(name, given, next(iter(embeddings.vectors.values())).shape[-1])
        vectors[name] = fusion(embeddings.vectors, embeddings.present)
        present[name] = torch.stack([present[part] for part in fusion if part in present]).any(0)
    return Embeddings(vectors, present)


def describe_fusions(fusions: Mapping[str, Fusion]) -> dict[str, dict[str, Any]]:
    """Return the configs of fusions by name."""
    return {name: fusion.describe() for name, fusion in fusions.items()}


def as_fusion(name: str, given: Fusion | Mapping[str, Any], width: int) -> Fusion:
    """Return the fusion of a config, or the fusion itself."""
    return given if isinstance(given, Fusion) else Fusion(name, given, width)


def weights_of(fusion: Fusion | Mapping[str, Any]) -> dict[str, float]:
    """Return the weight of each tower of a fusion, or of a fusion's config."""
    if isinstance(fusion, Fusion):
        return fusion.weights
    return {part: weight for part, weight in fusion.items() if part not in OPTIONS}


def check_fusions(fusions: Mapping[str, Mapping[str, Any]], towers: tuple[str, ...]) -> None:
    """Raise a ValueError for a fusion of nothing, of a tower that is not there, or that has the name of a tower."""
    for name, config in fusions.items():
        if name in towers:
            raise ValueError(f"model.fusions.{name}: is a tower of this model; give another name")
        if not weights_of(config):
            raise ValueError(f"model.fusions.{name}: has no towers")
        for part in weights_of(config):
            if part not in towers:
                options = "" if part.startswith(("query", "product")) else f"; options are {', '.join(OPTIONS)}"
                raise ValueError(f"model.fusions.{name}: no tower '{part}'; there are {list(towers)}{options}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
