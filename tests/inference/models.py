"""Small untrained models as checkpoints, and what they are compared on."""

from pathlib import Path

import torch

from mim_lightning.config import build_matcher, compose
from mim_lightning.data.images.codec import normalize_encoding
from mim_lightning.export import export
from mim_lightning.model.checkpoint import PREFIX, SECTION, describe_checkpoint
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Sample
from tests.shop import picture, small

TEXTS = ["red disc", "a green box with many more words than the others", "", "blue"]


def config_of(folder: Path, *overrides: str) -> dict:
    return compose("train", small(folder, *overrides))


def write_checkpoint(
    folder: Path, *overrides: str, seed: int = 0, encoders: dict[str, dict] | None = None
) -> tuple[Path, Matcher]:
    """Write what a run would leave, in the place where it would be; `encoders` take a tower's place, by its name."""
    torch.manual_seed(seed)
    config = config_of(folder, *overrides)
    for name, encoder in (encoders or {}).items():
        config["model"]["towers"][name]["encoder"] = encoder
    matcher = build_matcher(config).eval()
    state = {PREFIX + name: value for name, value in matcher.state_dict().items()}
    path = folder / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, SECTION: describe_checkpoint(matcher, config)}, path)
    return path, matcher


def write_pictures(folder: Path) -> list[Path]:
    """Write images of different sizes and shapes, one of them turned by its EXIF tag."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        image = picture(("red", "green", "blue", "grey")[number], ("disc", "box", "bar", "disc")[number], number)
        image = image.resize((60 + 30 * number, 90 - 10 * number))
        exif = image.getexif()
        if number == 2:
            exif[0x0112] = 6
        image.save(path, exif=exif)
    return paths


def samples_of(pictures: list[Path], texts: list[str]) -> list[Sample]:
    """Return what `prepare` and the stream would make of images and texts."""
    stored = [normalize_encoding(path.read_bytes(), 512) for path in pictures]
    return [
        Sample(number, {"query_image": data, "product_image": data, "query_text": text, "product_text": text})
        for number, (data, text) in enumerate(zip(stored, texts, strict=True))
    ]


def export_to(output: Path, checkpoint: Path, *overrides: str) -> Path:
    """Export a checkpoint as the entry point does."""
    return export(compose("export", [f"checkpoint={checkpoint}", f"output={output}", "device=cpu", *overrides]))


def write_bert(folder: Path) -> dict[str, str]:
    """Write a text model as transformers keeps them, and return the config of its encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "red", "blue", "disc", "box"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    return {"_target_": "mim_lightning.encoders.HfText", "name": str(folder), "pretrained": True}
