"""One image: its reference, download, limits, header, decoding, hash and transforms.

`reader` gives its bytes, `transforms` the uint8 tensor; an encoder normalizes it and computes features, and
`model.Tower.project` the unit vector.
"""
