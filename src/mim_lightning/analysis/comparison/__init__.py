"""Comparison of run groups: queries are paired, differences estimated, and printed or written as JSON."""
