"""The training objective: the weighted sum of losses over pairs of towers or fusions.

The paper's equations are not public: the pairs, the symmetric loss and the one learned scale are our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from mim_lightning.fields import PRODUCT
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.distillation import RELATIONAL, TEACHER_LOSSES, distillation_loss, with_vectors
from mim_lightning.losses.gather import gather_rows, gather_with_gradient, world_size
from mim_lightning.losses.grades import GRADE_FUNCTIONS
from mim_lightning.losses.pair_tiles import MAX_SCALE, Side
from mim_lightning.losses.positives import share_product
from mim_lightning.losses.rows import LossRows, truth_of, without_repeated_references
from mim_lightning.losses.tiled import PairLoss, function_of, has_tiled_form, tiled_losses
from mim_lightning.metric_names import width_name
from mim_lightning.precision import at_least_float32
from mim_lightning.types import LOG_FREQUENCY, WEIGHT, Batch, Embeddings, StepResult, side_of
from mim_lightning.widths import truncate, validate_width_weights

SCALES = ("learned", "fixed", "none")
# Entries of a matrix of similarities up to which the built-in losses compute it whole: 4 MiB in float32, as fast there
# as tiles are, and a run of such batches keeps its numbers bit for bit.
WHOLE_MATRIX = 2**20


_Losses = tuple[Tensor, dict[str, Tensor], Tensor, Tensor]  # total, by pair, rows with a positive, their negatives


@dataclass(frozen=True)
class Pair:
    """Two towers or fusions that should agree, or one and a column of another model's vectors.

    Attributes:
        weight: of the pair's loss.
        loss: "cosine" or "relational", of a tower or fusion and a column of vectors, see `losses.distillation`; None:
            the contrastive loss of all pairs.
        temperature: of "relational": the smaller, the more only a row's nearest others count.
    """

    left: str
    right: str
    weight: float = 1.0
    loss: str | None = None
    temperature: float = 0.1

    @property
    def is_contrastive(self) -> bool:
        return self.loss is None


class Objective(nn.Module):
    """Weighted sum of pair losses, each averaged over both directions and over all rows of all ranks.

    With `row_weights` or `grades` the average is weighted: a row counts by its weight times the function of its
    product's grade. With `grades` the positives of a query among the products count by theirs too.

    The value does not depend on how rows are distributed over ranks: every rank compares its own rows with those of
    all, and divides by the total count, times the world size, by which DDP divides gradients. The built-in losses are
    computed in tiles where the matrix of similarities is large, see `losses.tiled`. Any other loss gets whole matrices:

        def triplet(similarities_BG, positives_BG, columns_G, margin=0.2):
            negatives_B = similarities_BG.masked_fill(positives_BG | ~columns_G, -2).amax(1)
            nearest_B = similarities_BG.masked_fill(~positives_BG, 2).amin(1)
            return (margin + negatives_B - nearest_B).clamp(min=0)

    with `loss.function={_target_: my_package.triplet, _partial_: true}` and `loss.scale=none`, since a margin is one of
    cosines.

    Args:
        pairs: by name; the names become `train/loss/<pair>`.
        loss: gets similarities (B, G) of rows with columns, a mask of each row's positives, and one of the columns that
            are present; returns a value a row.
        names: of all towers and fusions.
        init_scale: initial logit scale (inverse temperature).
        max_scale: maximum of the logit scale (100 in CLIP).
        init_bias: initial value of a learned bias, for the sigmoid loss; None: no bias.
        scale_per_pair: learn a scale (and bias) for each pair instead of one for all.
        scale: "learned"; "fixed": remains `init_scale`; "none": the loss gets cosines.
        row_weights: whether rows count by the manifest's column `weight`.
        grades: from grades to weights above 0, or its name in `losses.grades`; None: all grades count alike.
        vectors: names of the columns of vectors, which a pair may name as it names a tower.
        popularity_correction: subtract the log of how often a product is drawn from its logits as a column: in-batch
            negatives are drawn by popularity, and popular products would be ranked too low (logQ, Yi et al. 2019,
            eq. 3). With info_nce only: the correction is one of a softmax.
        widths: width -> weight: the loss of each pair counts again for the first so many numbers of its vectors, at
            unit length, with this weight beside that of the full width (Kusupati et al. 2022, eq. 1). All share the
            logit scale. Their losses become `train/loss/<pair>/width_<width>`. Pairs with a loss of their own (cosine,
            relational) count at full width alone.
        dimension: of the embeddings, if it is known.

    Attributes:
        columns: of the training set, that it reads from a batch.
    """

    def __init__(
        self,
        pairs: Mapping[str, Pair],
        loss: PairLoss,
        names: tuple[str, ...],
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        init_bias: float | None = None,
        scale_per_pair: bool = False,
        scale: str = "learned",
        row_weights: bool = False,
        grades: str | Callable[[Tensor], Tensor] | None = None,
        popularity_correction: bool = False,
        widths: Mapping[int, float] | None = None,
        dimension: int | None = None,
        vectors: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"loss.scale={scale}: choose one of {', '.join(SCALES)}")
        for pair_name, pair in pairs.items():
            for name in (pair.left, pair.right):
                if name not in (*names, *vectors):
                    there = [*names, *vectors]
                    raise ValueError(f"model.pairs.{pair_name}: no tower or fusion '{name}'; there are {there}")
            _validate_teacher(pair_name, pair, vectors)
            if pair.weight < 0:
                raise ValueError(f"model.pairs.{pair_name}.weight={pair.weight}: must not be negative")
        if init_scale > max_scale:
            raise ValueError(f"loss.init_scale={init_scale}: exceeds loss.max_scale={max_scale}")
        if not any(pair.weight > 0 for pair in pairs.values()):
            raise ValueError("model.pairs: no pair has a weight above 0: there is nothing to learn")
        if isinstance(grades, str) and grades not in GRADE_FUNCTIONS:
            raise ValueError(f"loss.grades={grades}: choose one of {', '.join(GRADE_FUNCTIONS)}, or give a function")
        if grades is not None and not (has_tiled_form(loss) and max_scale <= MAX_SCALE):
            raise ValueError(
                f"loss.grades: only info_nce and sigmoid weigh positives, with loss.max_scale up to {MAX_SCALE:g}; "
                "leave it out with a function of your own"
            )
        if popularity_correction and not (function_of(loss) is info_nce and max_scale <= MAX_SCALE):
            raise ValueError(
                "loss.popularity_correction=true: corrects the softmax of info_nce, with loss.max_scale up to "
                f"{MAX_SCALE:g}; leave it out with another loss"
            )
        self.pairs = {name: pair for name, pair in pairs.items() if pair.weight > 0}
        weights = validate_width_weights("loss.widths", widths, dimension)
        self._widths = ((None, 1.0), *weights.items())  # None: the full width
        self.contrastive = {name: pair for name, pair in self.pairs.items() if pair.is_contrastive}
        self.vectors = tuple(name for name in vectors if name in self._sides_of(self.pairs))
        self.loss = loss
        self._grade_weights = GRADE_FUNCTIONS[grades] if isinstance(grades, str) else grades
        wanted = {WEIGHT: row_weights, LOG_FREQUENCY: popularity_correction}
        self.columns = tuple(name for name, is_wanted in wanted.items() if is_wanted)
        self.max_scale, self.max_log_scale = max_scale, math.log(max_scale)
        self.fixed_scale = {"learned": None, "fixed": init_scale, "none": 1.0}[scale]
        scale_names = list(self.contrastive) if scale_per_pair else ["all"] if self.contrastive else []
        self.log_scales = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(math.log(init_scale))) for name in scale_names if scale == "learned"}
        )
        self.biases = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(init_bias)) for name in scale_names if init_bias is not None}
        )

    @property
    def sides(self) -> tuple[str, ...]:
        """The towers and fusions of all pairs."""
        return tuple(name for name in self._sides_of(self.pairs) if name not in self.vectors)

    @staticmethod
    def _sides_of(pairs: Mapping[str, Pair]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in pairs.values() for name in (pair.left, pair.right)))

    def validate_dimensions(self, width: int, widths: Mapping[str, int]) -> None:
        """Check that vectors have the dimension of the model where the loss compares them with its own.

        Raises:
            ValueError: they do not; names the pair.
        """
        for name, pair in self.pairs.items():
            for side in (pair.left, pair.right):
                if pair.loss != RELATIONAL and widths.get(side, width) != width:
                    raise ValueError(
                        f"model.pairs.{name}: '{side}' has {widths[side]} dimensions, the model {width}; give "
                        f"embed_dim={widths[side]}, or loss: {RELATIONAL} to the pair, which compares rows with rows"
                    )

    def forward(self, embeddings: Embeddings, batch: Batch) -> StepResult:
        with torch.no_grad():
            for log_scale in self.log_scales.values():
                # in place: a clamp in the graph has no gradient above the maximum
                log_scale.clamp_(max=self.max_log_scale)
        if self.vectors:
            embeddings = with_vectors(embeddings, {name: batch.vectors[name] for name in self.vectors})
        local = LossRows.of(
            embeddings, batch, self._sides_of(self.pairs), self.columns, self._grade_weights is not None
        )
        every = local.gathered()
        if batch.num_references:
            local, every = without_repeated_references(local, every, batch.num_references)
        has_tiles = has_tiled_form(self.loss) and self.max_scale <= MAX_SCALE
        # what a table of similarities and two masks cannot say
        needs_tiles = self._grade_weights is not None or LOG_FREQUENCY in self.columns
        is_tiled = needs_tiles or (has_tiles and len(local) * len(every) > WHOLE_MATRIX)
        compute = self._compute_tiled if is_tiled else self._compute_whole
        # in float32: autocast would round similarities, which are then multiplied by up to 100
        with torch.autocast(batch.product_keys.device.type, enabled=False):
            vectors = {name: at_least_float32(embeddings.vectors[name]) for name in self._sides_of(self.pairs)}
            if self.contrastive:
                loss, per_pair, num_rows, num_negatives = compute(vectors, local, every)
            else:
                loss = num_rows = num_negatives = batch.query_keys.new_zeros(())
                per_pair = {}
            for name, pair in self.pairs.items():
                if not pair.is_contrastive:
                    per_pair[name] = self._teach(pair, vectors, local, batch)
                    loss = loss + pair.weight * per_pair[name]
        return StepResult(
            loss=loss,
            per_pair={name: value.detach() for name, value in per_pair.items()},
            stats={
                **self._scales(),
                "negatives_per_row": (num_negatives / num_rows.clamp(min=1)).float(),
                "rows_with_repeated_product": _repeated_fraction(
                    *(rows.keys[PRODUCT].view(-1, len(local))[:, : len(batch)].flatten() for rows in (local, every))
                ),
            },
        )

    def _teach(self, pair: Pair, vectors: Mapping[str, Tensor], local: LossRows, batch: Batch) -> Tensor:
        student, teacher = (pair.left, pair.right) if pair.right in self.vectors else (pair.right, pair.left)
        assert pair.loss is not None
        return distillation_loss(
            pair.loss,
            vectors[student],
            vectors[teacher],
            local.present[student] & local.present[teacher],
            batch.product_keys if side_of(teacher) == PRODUCT else batch.query_keys,
            pair.temperature,
            local.values.get(WEIGHT),
        )

    def _compute_tiled(self, vectors: Mapping[str, Tensor], local: LossRows, every: LossRows) -> _Losses:
        """Compute a built-in loss in tiles, of the rows that are present alone."""
        local = self._weighed(local.cpu())
        every = local if world_size() == 1 else self._weighed(every.cpu())
        lefts = {name: local.side(name, vectors[name]) for name in self._sides_of(self.contrastive)}
        if world_size() == 1:
            rights = lefts
        else:
            names = tuple(dict.fromkeys(pair.right for pair in self.contrastive.values()))
            gathered = gather_with_gradient(torch.cat([vectors[name] for name in names], dim=1)).chunk(len(names), 1)
            rights = {name: every.side(name, part) for name, part in zip(names, gathered, strict=True)}
        sides: list[tuple[Side, Side]] = []
        pairs = self.contrastive
        for width, _ in self._widths:
            cut_lefts = _at_width(lefts, width)
            cut_rights = cut_lefts if rights is lefts else _at_width(rights, width)
            sides += [
                _with_grades(pair, cut_lefts[pair.left], cut_rights[pair.right]) for pair in self.contrastive.values()
            ]
        num_widths, like = len(self._widths), next(iter(vectors.values()))
        result = tiled_losses(
            self.loss,
            sides,
            [*self._weights().values()],
            torch.stack([self._scale(name, like) for name in pairs] * num_widths),
            torch.stack([self.biases[self._key(name)] for name in pairs] * num_widths) if self.biases else None,
        )
        per_pair = dict(zip(self._weights(), result.per_pair.unbind(), strict=True))
        return result.loss, per_pair, result.num_rows, result.num_negatives

    def _weights(self) -> dict[str, float]:
        """Return the weight of the loss of each pair at each width, by the name under which it is logged."""
        return {
            name if width is None else width_name(name, width): factor * pair.weight
            for width, factor in self._widths
            for name, pair in self.contrastive.items()
        }

    def _weighed(self, rows: LossRows) -> LossRows:
        return rows if self._grade_weights is None else rows.graded(self._grade_weights)

    def _compute_whole(self, vectors: Mapping[str, Tensor], local: LossRows, every: LossRows) -> _Losses:
        """Compute any loss from the similarities of all rows with all columns, a pair and direction at a time."""
        sides = self._sides_of(self.contrastive)
        gathered = gather_with_gradient(torch.cat([vectors[name] for name in sides], dim=1))
        all_vectors = dict(zip(sides, gathered.chunk(len(sides), dim=1), strict=True))
        shared: dict[tuple[str, str], Tensor] = {}
        weights_B = local.values[WEIGHT].to(gathered.dtype) if WEIGHT in local.values else None
        sums, totals, counts, negatives = [], [], [], []
        for (width, _), (name, pair) in product(self._widths, self.contrastive.items()):
            for a, b in ((pair.left, pair.right), (pair.right, pair.left)):
                truths = truth_of(a), truth_of(b)
                if truths not in shared:
                    shared[truths] = share_product(local.keys[truths[0]], every.keys[truths[1]])
                columns_G = every.present[b]
                positives_BG = shared[truths] & columns_G
                rows_B = local.present[a] & positives_BG.any(1)
                logits_BG = self._logits(name, _cut(vectors[a], width), _cut(all_vectors[b], width))
                losses_B = self.loss(logits_BG, positives_BG, columns_G)
                losses_B = losses_B.masked_fill(~rows_B, 0.0)
                sums.append((losses_B if weights_B is None else losses_B * weights_B).sum())
                counts.append(rows_B.sum())
                totals.append(counts[-1] if weights_B is None else (rows_B * weights_B).sum())
                negatives.append(((columns_G & ~positives_BG).sum(1) * rows_B).sum())
        totals_2N = gather_rows(torch.stack(totals)[None]).sum(0)
        means = torch.stack(sums) * world_size() / totals_2N.masked_fill(totals_2N == 0, 1)
        weights = self._weights()
        per_pair = dict(zip(weights, means.view(-1, 2).mean(1), strict=True))
        loss = torch.stack([weights[name] * value for name, value in per_pair.items()]).sum()
        return loss, per_pair, torch.stack(counts).sum(), torch.stack(negatives).sum()

    def _key(self, pair_name: str) -> str:
        """Return under which name a pair's scale and bias are learned."""
        return pair_name if pair_name in self.log_scales or pair_name in self.biases else "all"

    def _scale(self, pair_name: str, like: Tensor) -> Tensor:
        if self.fixed_scale is not None:
            return like.new_tensor(self.fixed_scale)
        return self.log_scales[self._key(pair_name)].exp()

    def _logits(self, pair_name: str, left_BD: Tensor, right_GD: Tensor) -> Tensor:
        logits_BG = left_BD @ right_GD.T
        if self.fixed_scale != 1.0:
            logits_BG = logits_BG * self._scale(pair_name, left_BD)
        return logits_BG + self.biases[self._key(pair_name)] if self.biases else logits_BG

    def _scales(self) -> dict[str, Tensor]:
        names = {name: "logit_scale" if name == "all" else f"logit_scale/{name}" for name in self.log_scales}
        return {names[name]: value.detach().exp() for name, value in self.log_scales.items()}


def _cut(vectors_BD: Tensor, width: int | None) -> Tensor:
    return vectors_BD if width is None else truncate(vectors_BD, width)


def _at_width(sides: Mapping[str, Side], width: int | None) -> Mapping[str, Side]:
    if width is None:
        return sides
    return {name: replace(side, vectors=truncate(side.vectors, width)) for name, side in sides.items()}


def _validate_teacher(pair_name: str, pair: Pair, vectors: Sequence[str]) -> None:
    """Raise ValueError for a pair of two columns of vectors, or a teacher's loss without one."""
    key, num_given = f"model.pairs.{pair_name}", (pair.left in vectors) + (pair.right in vectors)
    if pair.loss not in (None, *TEACHER_LOSSES):
        choices = ", ".join(TEACHER_LOSSES)
        raise ValueError(f"{key}.loss={pair.loss}: choose one of {choices}, or null for the loss of all pairs")
    if num_given == 2:
        raise ValueError(f"{key}: '{pair.left}' and '{pair.right}' are both given vectors: nothing is learnt of them")
    if pair.loss is not None and not num_given:
        there = f"there are {list(vectors)}" if vectors else "there are none"
        raise ValueError(f"{key}.loss={pair.loss}: compares with a column of data.vectors; {there}")
    if not pair.temperature > 0:
        raise ValueError(f"{key}.temperature={pair.temperature}: must be above 0")


def _repeated_fraction(products_B: Tensor, all_products_G: Tensor) -> Tensor:
    """Return the fraction of rows whose product is in another row too."""
    sorted_G = all_products_G.sort().values
    num_B = torch.searchsorted(sorted_G, products_B, right=True) - torch.searchsorted(sorted_G, products_B)
    return ((num_B > 1) & (products_B >= 0)).float().mean()


def _with_grades(pair: Pair, left: Side, right: Side) -> tuple[Side, Side]:
    """Return the sides of a pair; grades are those of products for a query, and do not count between two queries."""
    is_graded = (side_of(pair.left) == PRODUCT) != (side_of(pair.right) == PRODUCT)
    return (left, right) if is_graded else (replace(left, grades=None), replace(right, grades=None))
