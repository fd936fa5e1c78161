"""Encoders: images or tokens in, feature vectors out, one adapter file for each vendor; `interface` defines them."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.encoders.hf_image_text import HfImageText
    from mim_lightning.encoders.hf_text import HfText
    from mim_lightning.encoders.interface import Encoder, ImageEncoder
    from mim_lightning.encoders.open_clip import OpenClipImage, OpenClipText
    from mim_lightning.encoders.timm_image import TimmImage
    from mim_lightning.encoders.tiny import TinyImage, TinyText
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "Encoder": "mim_lightning.encoders.interface",
            "HfImageText": "mim_lightning.encoders.hf_image_text",
            "HfText": "mim_lightning.encoders.hf_text",
            "ImageEncoder": "mim_lightning.encoders.interface",
            "OpenClipImage": "mim_lightning.encoders.open_clip",
            "OpenClipText": "mim_lightning.encoders.open_clip",
            "TimmImage": "mim_lightning.encoders.timm_image",
            "TinyImage": "mim_lightning.encoders.tiny",
            "TinyText": "mim_lightning.encoders.tiny",
        },
    )
