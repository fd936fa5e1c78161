"""Run in every process of a test: trains several runs one after the other, as `python -m mim_lightning.train` does."""

import json
import sys

from mim_lightning.config import compose
from mim_lightning.train import train

if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        train(compose("train", words))
