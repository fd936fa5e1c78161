"""One image: its reference, download, limits, header, decoding, hash and transforms."""
