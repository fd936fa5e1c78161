"""An encoder that reads an image and a text together, as a vision-language model does."""

from torch import Tensor

from mim_lightning.encoders.interface import Encoder, canonical_text
from mim_lightning.encoders.tiny import TinyImage, TinyText
from mim_lightning.types import InputSpec, TowerInput


class ImageTextEncoder(Encoder):
    """The features of a tiny image encoder times those of a tiny text encoder."""

    spec: tuple[InputSpec, ...]

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = TinyImage(32, 64), TinyText(8, 200, 64, 1)
        self.spec, self.width = (self.image.spec, self.text.spec), 64

    def forward(self, inputs: TowerInput) -> Tensor:
        images, texts = inputs
        return self.image(images) * self.text(texts)

    def describe_preprocessing(self) -> str:
        return canonical_text({"parts": [part.describe_preprocessing() for part in (self.image, self.text)]})
