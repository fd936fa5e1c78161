"""A synthetic shop: products and street photos that are drawn, for a first run, tests and examples."""

from mim_lightning.data.synthetic.writer import write_synthetic_world

__all__ = ["write_synthetic_world"]
