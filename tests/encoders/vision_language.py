"""A tiny vision-language model with random weights, as transformers keeps one."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
)

MARKS = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad")]
WORDS = [*MARKS, "[UNK]", "system", "user", "assistant", "Represent", "the", "input", "red", "green", "blue", "many"]
ID_KEYS = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad"}
PATCH, MERGE = 8, 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": PATCH}


def write_vision_language_model(folder: Path, kind: str = "qwen3_vl") -> dict[str, Any]:
    """Write the folder of a model, and return the config of its encoder, for images of 32 x 32 pixels: 4 tokens."""
    text = {"vocab_size": len(WORDS), "intermediate_size": 48, "head_dim": 16, "max_position_embeddings": 256, **SIZES}
    ids = {f"{key}_token_id": WORDS.index(f"<|{mark}|>") for key, mark in ID_KEYS.items()}
    if kind == "qwen3_vl":
        vision = {**VISION, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        rope = {**ROPE, "mrope_interleaved": True}
        config: Any = Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **ids)
    else:
        vision = {**VISION, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 32}
        config = Qwen2_5_VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=vision, **ids)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=MARKS[0], unk_token="[UNK]", additional_special_tokens=MARKS[1:]
    ).save_pretrained(folder)
    processor = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    sizes = {"image_size": 32, "max_length": 8}
    return {"_target_": "mim_lightning.encoders.HfImageText", "name": str(folder), "pretrained": True, **sizes}
