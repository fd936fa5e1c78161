"""Kinds of data sets: a source of each reads it into a Manifest.

`Source`, the interface, and `ManifestSource`, for tables of your own, are in `data/manifest/manifest.py`. To add one: a
class with `read` and `describe`, as that in `grocery.py`, named in `data/__init__.py` and `stored_config.ROLES`, and
a file conf/data/<name>.yaml.
"""
