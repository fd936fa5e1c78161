"""Kinds of data sets: a source of each reads it into a Manifest.

`Source`, the interface, and `ManifestSource`, for tables of your own, are in `data/manifest/manifest.py`.
"""
