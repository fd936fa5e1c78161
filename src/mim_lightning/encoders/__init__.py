"""Encoders: images or tokens in, feature vectors out, one adapter file for each vendor.

Config names the class by its full path (`mim_lightning.encoders.timm_image.TimmImage`), so that a run
imports only the vendors it uses; `model` builds them and knows nothing but `interface`.
"""

from mim_lightning.encoders.interface import Encoder, ImageEncoder

__all__ = ["Encoder", "ImageEncoder"]
