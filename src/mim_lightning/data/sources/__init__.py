"""Kinds of data sets: a source of each reads it into a Manifest."""
