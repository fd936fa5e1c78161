"""The layers of a network, found in its tree of modules: to train the last ones, or at rates that fall with depth."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

NUMBERED = re.compile(r"(.*?)(\d+)")  # such as layer1 to layer4 of a ResNet


def group_by_layer(root: nn.Module, list_name: str | None = None) -> list[list[str]]:
    """Return the names of all parameters by layer, from input to output.

    The first group comes before the layers (patches, token and position tables), the last one behind them (the final
    norm, pooling, projections); either may be empty. The layers are the outermost list of modules, or modules of one
    name with numbers, that has most of the parameters: the blocks of a transformer, the stages of a convolutional
    network. A network without such a list is one layer.

    Args:
        root: the encoder; names are relative to it.
        list_name: of the list of layers, where no list has most of the parameters.
    """
    names = [name for name, _ in root.named_parameters()]
    if list_name is None:
        found = _find_layers(root)
        if found is None:
            return [[], names, []]
        owner, children = found
    else:
        owner, children = f"{list_name}.", [name for name, _ in root.get_submodule(list_name).named_children()]
    prefixes = [f"{owner}{child}." for child in children]
    groups: list[list[str]] = [[] for _ in range(len(prefixes) + 2)]
    for name in names:
        idx = next((idx for idx, prefix in enumerate(prefixes, 1) if name.startswith(prefix)), None)
        if idx is None:
            idx = -1 if _is_behind(root, name, prefixes[-1]) else 0
        groups[idx].append(name)
    return groups


def _find_layers(root: nn.Module) -> tuple[str, list[str]] | None:
    """Return the name of the module that has the layers, with a dot behind it, and theirs in it."""
    enough = _size(root) / 2
    for name, module in sorted(root.named_modules(), key=lambda item: item[0].count(".") + bool(item[0])):
        for children in _candidates(module):
            parts = [child for child in children if _size(module.get_submodule(child))]
            if len(parts) > 1 and sum(_size(module.get_submodule(child)) for child in parts) > enough:
                return f"{name}." if name else "", parts
    return None


def _candidates(module: nn.Module) -> Iterator[list[str]]:
    names = [name for name, _ in module.named_children()]
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield names
        return
    stems: dict[str, list[str]] = {}
    for name in names:
        if numbered := NUMBERED.fullmatch(name):
            stems.setdefault(numbered[1], []).append(name)
    yield from stems.values()


def _size(module: nn.Module) -> int:
    """Return the number of parameters, without those of tables of tokens or positions."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in tables)


def _is_behind(root: nn.Module, name: str, last: str) -> bool:
    """Return whether a parameter outside the layers comes behind the last one, in the order of registration."""
    own, path = name.split("."), last.rstrip(".").split(".")
    depth = next(idx for idx, part in enumerate(own) if part != path[idx])
    if depth == len(own) - 1:  # a parameter of a module that has the layers: tokens and positions, or a projection
        return "proj" in own[depth]
    siblings = [child for child, _ in root.get_submodule(".".join(own[:depth])).named_children()]
    return siblings.index(own[depth]) > siblings.index(path[depth])
