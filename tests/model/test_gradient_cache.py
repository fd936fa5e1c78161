"""Cached encoding against the plain pass in float64: same embeddings, same gradients, dropout masks included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.model import gradient_cache
from mim_lightning.model.activation_checkpointing import start_checkpointing
from mim_lightning.model.adapters import LoraSettings
from mim_lightning.model.compilation import compile_encoders
from mim_lightning.model.gradient_cache import MicroBatches, encode_cached
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import Batch, TowerInput
from tests.encoders.image_text_encoder import ImageTextEncoder
from tests.model.test_matcher import FUSIONS, TIED, image_tower, make_batch, text_tower


class Noisy(nn.Module):
    """A tower's encoder followed by dropout and, on request, batch normalization."""

    def __init__(self, tower: Tower, norm: bool = False) -> None:
        super().__init__()
        self.encoder, self.spec, self.width = tower.encoder, tower.encoder.spec, tower.encoder.width
        self.after = nn.Sequential(nn.BatchNorm1d(self.width) if norm else nn.Identity(), nn.Dropout(0.5))

    def forward(self, inputs: TowerInput) -> Tensor:
        return self.after(self.encoder(inputs))


def noisy(tower: Tower, norm: bool = False, **options: str) -> Tower:
    return Tower(Noisy(tower, norm), 8, **options)  # type: ignore[arg-type]


def two_towers() -> Matcher:
    return Matcher({"query_image": noisy(image_tower()), "product_text": noisy(text_tower())}, {}, {})


def four_tied_towers() -> Matcher:
    return Matcher({"query_image": noisy(image_tower()), "product_text": noisy(text_tower())}, TIED, FUSIONS)


def half_frozen_towers() -> Matcher:
    towers = {
        "query_image": noisy(image_tower(), train="frozen"),
        "product_image": noisy(image_tower()),
        "product_text": noisy(text_tower()),
    }
    towers["product_text"].projection.requires_grad_(False)
    return Matcher(towers, {"query_text": "product_text"}, FUSIONS)


def gradients_of(matcher: Matcher, embed: Callable[[Batch], object], seed: int = 3) -> dict[str, Tensor]:
    """Return loss and gradients of a step over all pairs of towers and fusions."""
    names = [name for name in matcher.names if name not in FUSIONS or "query_text" in matcher.names]
    pairs = {f"{a}-{b}": Pair(a, b, 0.5 + len(a) / 9) for a in names for b in names if a < b}
    torch.manual_seed(seed)
    result = Objective(pairs, info_nce, matcher.names).double()(embed(make_batch()), make_batch())  # type: ignore[arg-type]
    matcher.zero_grad()
    result.loss.backward()
    found = {name: p.grad.clone() for name, p in matcher.named_parameters() if p.grad is not None}
    return {"loss": result.loss.detach(), **found}


@pytest.fixture
def keep_graph(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make cached encoding the naive one: every micro-batch with its graph, back-propagated at once."""

    def naive(tower: Tower, parts: list[TowerInput], size: int) -> list[Tensor]:
        outputs: list[list[Tensor]] = [[] for _ in parts]
        for counts, starts in zip(*(lambda b: (b.counts, b.starts))(MicroBatches(tower, parts, size)), strict=True):
            spans = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]
            if isinstance(parts[0], dict):
                encoded = tower({name: tensor[spans[0]] for name, tensor in parts[0].items()})
            else:
                encoded = tower(torch.cat([part[span] for part, span in zip(parts, spans, strict=True)]))  # type: ignore
            for part, piece in zip(outputs, encoded.split(counts), strict=True):
                part.append(piece)
        return [torch.cat(part) for part in outputs]

    return lambda: monkeypatch.setattr("mim_lightning.model.matcher.encode_cached", naive)


@pytest.mark.parametrize("make", [two_towers, four_tied_towers, half_frozen_towers])
def test_a_cached_step_has_the_gradients_of_the_plain_one(make: Callable, keep_graph: Callable[[], None]) -> None:
    torch.manual_seed(0)
    matcher = make().double().train()
    plain = gradients_of(matcher, matcher)
    whole = gradients_of(matcher, lambda batch: matcher(batch, 100))  # one micro-batch: the same dropout masks
    matcher.eval()
    without_noise = gradients_of(matcher, matcher)
    split_without_noise = gradients_of(matcher, lambda batch: matcher(batch, 2))
    matcher.train()
    split = {size: gradients_of(matcher, lambda batch, size=size: matcher(batch, size)) for size in (1, 2)}
    keep_graph()
    kept = {size: gradients_of(matcher, lambda batch, size=size: matcher(batch, size)) for size in (1, 2)}
    assert (plain["loss"] - without_noise["loss"]).abs() > 1e-3, "dropout is on"
    for found, expected in (
        (whole, plain),
        (split_without_noise, without_noise),
        (split[1], kept[1]),
        (split[2], kept[2]),
    ):
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("backend", [False, "eager"])
def test_adapters_checkpointing_and_compiling_leave_a_cached_step_what_it_is(backend: str | bool) -> None:
    """Compiling without checkpointing: the backend `eager` recomputes with other dropout masks."""
    pytest.importorskip("peft", reason="needs the extra: pip install 'mim-lightning[lora]'")
    torch.manual_seed(0)
    lora = LoraSettings(rank=2, dropout=0.3)
    towers = {
        "query_image": Tower(image_tower().encoder, 8, activation_checkpointing=not backend),
        "product_text": Tower(text_tower().encoder, 8, "lora", lora=lora, activation_checkpointing=not backend),
    }
    matcher = Matcher(towers, {}, {}).double().train()
    for name, parameter in matcher.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)  # zero at the start, where dropout changes nothing
    expected = gradients_of(matcher, matcher)
    matcher.eval()
    without_noise = gradients_of(matcher, matcher)
    start_checkpointing(matcher)
    compile_encoders(matcher, backend)
    split = gradients_of(matcher, lambda batch: matcher(batch, 2))
    found = gradients_of(matcher.train(), lambda batch: matcher(batch, 100))
    assert (expected["loss"] - without_noise["loss"]).abs() > 1e-3, "dropout is on"
    assert any("lora_A" in name for name in expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(split, without_noise, rtol=1e-11, atol=1e-13)


def test_a_frozen_encoder_encodes_once_and_others_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        Noisy,
        "forward",
        lambda self, inputs: (
            calls.append((len(inputs), torch.is_grad_enabled())),
            self.encoder(inputs) * (self.after.training + 1.0),
        )[1],
    )
    images = make_batch().inputs["query_image"]
    for frozen, expected in ((True, [(2, False), (1, False)]), (False, [(2, False), (1, False), (2, True), (1, True)])):
        calls.clear()
        encode_cached(noisy(image_tower(), train="frozen" if frozen else "full"), [images], 2)[0].sum().backward()
        assert calls == expected
    calls.clear()
    with torch.no_grad():
        encode_cached(noisy(image_tower()), [images], 2)
    assert len(calls) == 2


def test_random_numbers_go_on_as_after_the_plain_step() -> None:
    first, second, images = noisy(image_tower()), noisy(image_tower()), make_batch().inputs["query_image"]
    after = []
    for encode in (lambda tower: tower(images), lambda tower: encode_cached(tower, [images], 4)[0]):
        torch.manual_seed(1)
        (encode(first) + encode(second)).sum().backward()
        after.append(torch.rand(4))
    assert torch.equal(*after)


def test_running_statistics_are_updated_once_for_each_micro_batch() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 255, (6, 3, 32, 32), dtype=torch.uint8)
    towers = [noisy(image_tower(), norm=True) for _ in range(2)]
    towers[1].load_state_dict(towers[0].state_dict())
    for tower, encode in zip(
        towers,
        (lambda tower: [tower(images[:3]), tower(images[3:])], lambda tower: encode_cached(tower, [images], 3)),
        strict=True,
    ):
        torch.manual_seed(1)
        torch.cat(encode(tower)).pow(3).sum().backward()
    for (name, plain), cached in zip(towers[0].state_dict().items(), towers[1].state_dict().values(), strict=True):
        assert torch.equal(plain, cached), name
    assert towers[1].encoder.after[0].num_batches_tracked == 2  # type: ignore[index]
    assert towers[1].encoder.after[0].track_running_stats  # type: ignore[index]
    for (name, plain), cached in zip(towers[0].named_parameters(), towers[1].parameters(), strict=True):
        torch.testing.assert_close(plain.grad, cached.grad, msg=name)


def test_the_second_pass_runs_under_the_autocast_of_the_first() -> None:
    tower = noisy(image_tower())
    images = make_batch().inputs["query_image"]
    found = []
    for encode in (lambda: tower(images), lambda: encode_cached(tower, [images], 4)[0]):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = encode()
        tower.zero_grad()
        vectors.pow(3).sum().backward()
        found.append([vectors.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_micro_batches_have_their_proportion_of_each_part() -> None:
    street, shop = torch.arange(6), torch.arange(100, 103)
    batches = MicroBatches(nn.Identity(), [street, shop], 4)
    inputs = [batches.inputs(idx).tolist() for idx in range(len(batches))]
    assert [len(rows) for rows in inputs] == [4, 4, 1]
    assert all(len([row for row in rows if row >= 100]) in (1, 2) for rows in inputs[:2])
    joined = batches.join([torch.tensor(rows) for rows in inputs])
    assert torch.equal(joined[0], street) and torch.equal(joined[1], shop)
    assert torch.equal(batches.gradient(1, joined), torch.tensor(inputs[1]))


def test_a_tower_over_several_fields_is_cached_too() -> None:
    tower = Tower(ImageTextEncoder(), 8)
    texts = tower.encoder.spec[1].tokenize(["red", "blue bag", "a"])
    images = torch.randint(0, 255, (3, 3, *tower.encoder.spec[0].size), dtype=torch.uint8)
    found = []
    for encode in (tower, lambda inputs: encode_cached(tower, [inputs], 2)[0]):
        tower.zero_grad()
        vectors = encode((images, texts))
        vectors.pow(3).sum().backward()
        found.append([vectors, *(p.grad.clone() for p in tower.parameters())])
    for plain, cached in zip(*found, strict=True):
        torch.testing.assert_close(plain, cached)


def test_a_parameter_without_gradient_keeps_none() -> None:
    tower = noisy(image_tower())
    tower.encoder.spare = nn.Parameter(torch.zeros(2))
    encode_cached(tower, [make_batch().inputs["query_image"]], 2)[0].sum().backward()
    assert tower.encoder.spare.grad is None
    assert gradient_cache.first_tensor({"input_ids": torch.ones(1)}) == 1
