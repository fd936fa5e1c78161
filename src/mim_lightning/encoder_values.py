"""The values of training that the config of a single encoder brings (`training:` in conf/encoder/image, text ...).

Those of a pair (`encoder.training`) win over them, and the user's own over both. A pair's are composed by interpolation
in conf/; those of single encoders differ between towers, so they become factors on the rate: what is new, such as a
projection, keeps the rate of training from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SECTION = "training"
SUGGESTED = "suggested"  # values that are only named at the start
TUNED_FOR = "torch.optim.AdamW"  # the optimizer that the rates are for


def place_encoder_values(config: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Move the values that single encoders bring to where training reads them, and report them in `encoder.training`.

    Args:
        config: resolved; changed in place. Afterwards an encoder has its constructor's arguments alone.
        written: the same before it was resolved: a value that is no interpolation is the user's own.
    """
    brought = {tower: values for tower, values in _taken_from_towers(config) if values}
    for part in _encoders(config):
        part.pop(SECTION, None)
    encoder, optim = config.get("encoder"), config.get("optim")
    if not brought or not isinstance(encoder, dict) or not isinstance(optim, dict) or encoder.get(SECTION):
        return
    is_own = not str((written.get("optim") or {}).get("lr")).startswith("${") or optim.get("lr_scales")
    if is_own or (optim.get("optimizer") or {}).get("_target_") != TUNED_FOR:
        return
    rates = {tower: values["optim"]["lr"] for tower, values in brought.items() if "optim" in values}
    scales = {tower: {"encoder": float(f"{rate / optim['lr']:.6g}")} for tower, rate in rates.items()}
    if scales:
        optim["lr_scales"] = {"towers": scales}
        encoder[SECTION] = {"optim": {"lr_scales": optim["lr_scales"]}}
    others = {tower: values[SUGGESTED]["optim"]["lr"] for tower, values in brought.items() if SUGGESTED in values}
    if others:
        encoder.setdefault(SECTION, {})[SUGGESTED] = {
            f"optim.lr_scales.towers.{tower}.encoder": float(f"{rate / optim['lr']:.6g}")
            for tower, rate in others.items()
        }


def _taken_from_towers(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each tower whose pretrained encoder is trained as a whole or in part, and what its config brings."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return
    tied = {name for name, owner in (model.get("tied") or {}).items() if owner is not None}
    for name, tower in (model.get("towers") or {}).items():
        if name in tied or not isinstance(tower, Mapping) or not isinstance(tower.get("encoder"), Mapping):
            continue
        # adapters are new, and random weights are trained as from scratch
        if tower.get("train") not in ("frozen", "lora") and tower["encoder"].get("pretrained"):
            yield name, tower["encoder"].get(SECTION) or {}


def _encoders(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every encoder in a config, wherever it was chosen."""
    model = config.get("model")
    towers = (model.get("towers") or {}) if isinstance(model, Mapping) else {}
    encoder = config.get("encoder")
    parts = [tower.get("encoder") for tower in towers.values() if isinstance(tower, Mapping)]
    parts += [*encoder.values()] if isinstance(encoder, Mapping) else []
    yield from (part for part in (*parts, config.get("tokenizer")) if isinstance(part, dict) and "_target_" in part)
