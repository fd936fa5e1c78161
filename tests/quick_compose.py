"""Hydra composes in two thirds of the time: YAML is parsed in C, and an interpolation once a process.

Every test of a run composes its config, out of the same files. Both parsers give what those in their place give, but
name what is not YAML in other words.
"""

import functools
from unittest import mock

import omegaconf._utils
import omegaconf.base
import yaml


def install() -> None:
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with mock.patch.object(yaml, "SafeLoader", fast):  # OmegaConf makes a subclass of what has this name
        loader = omegaconf._utils.get_yaml_loader()
    omegaconf._utils.get_yaml_loader = lambda: loader
    omegaconf.base.parse = functools.cache(omegaconf.base.parse)
