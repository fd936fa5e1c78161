"""Training by sentence-transformers and its cached loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.pace import Pace
from benchmarks.training.rows import RowCollate
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.types import ImageSpec


def train_sentence_transformers(setup: Setup, pace: Pace, **more: Any) -> None:
    """Train by its trainer and its cached loss, of every pair of towers; one column a tower, each encoded once.

    Args:
        more: arguments of its trainer.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from transformers import TrainerCallback

    config = setup.config()
    matcher, datamodule = setup.build(config)
    collate = RowCollate(matcher.input_specs(), "longest")
    columns = list(matcher.tower_names)
    pairs = [(pair["left"], pair["right"]) for pair in config["model"]["pairs"].values()]
    reps_idxs = [(columns.index(a), columns.index(b)) for a, b in pairs if a in columns and b in columns]

    class EncoderModule(InputModule):
        """Both encoders: of images and of texts."""

        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = matcher.tower("product_image"), matcher.tower("product_text")

        @property
        def modalities(self) -> list[Any]:
            return ["text", "image"]

        def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
            if isinstance(inputs[0], str):
                return collate.encode("product_text", inputs)
            return {"pixel_values": collate.encode("product_image", inputs)}

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            tokens = {name: value for name, value in features.items() if isinstance(value, Tensor)}
            inputs = features.get("pixel_values")
            features["sentence_embedding"] = self.text(tokens) if inputs is None else self.image(inputs)
            return features

        def save(self, *args: Any, **kwargs: Any) -> None: ...

    class PairsLoss(CachedMultipleNegativesRankingLoss):
        """Their cached loss, summed over pairs of columns."""

        def calculate_loss(self, reps: Any, labels: Any = None, *, with_backward: bool = False) -> Tensor:
            # a backward pass for every pair would not need the others' graphs: those end at the embeddings
            one = partial(super().calculate_loss, labels=labels, with_backward=with_backward)
            return torch.stack([one([reps[a], reps[b]]) for a, b in reps_idxs]).sum()

    class Segments(TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            pace.begin()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            pace.end(setup.batches * setup.batch_size)

    shards = datamodule.opened.train
    numbers = [number % len(shards) for number in range(setup.batches * setup.batch_size)]
    samples = shards.read(numbers)
    images = {name for name, spec in matcher.input_specs().items() if isinstance(spec, ImageSpec)}
    values = {
        name: [
            {"bytes": sample.inputs[name], "path": None} if name in images else sample.inputs.get(name) or ""
            for sample in samples
        ]
        for name in columns
    }
    kinds = Features({name: ImageColumn() if name in images else Value("string") for name in columns})
    model = SentenceTransformer(modules=[EncoderModule()], device=setup.device)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(setup.scratch / "sentence_transformers"),
        per_device_train_batch_size=setup.batch_size,
        num_train_epochs=setup.epochs,
        seed=config["seed"],
        learning_rate=config["optim"]["lr"],
        weight_decay=config["optim"]["weight_decay"],
        max_grad_norm=CLIP_NORM,
        bf16=setup.device == "cuda",
        use_cpu=setup.device == "cpu",
        dataloader_num_workers=setup.workers,
        dataloader_persistent_workers=setup.workers > 0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    loss = PairsLoss(
        model,
        mini_batch_size=setup.micro_batch_size,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    pace.watch(matcher)
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(values, features=kinds),
        loss=loss,
        callbacks=[Segments()],
    ).train()
