"""A shop that is drawn instead of photographed: data for a first run, for tests and for the README.

Two doors: `write_synthetic_world` fills a folder with tables and pictures, `draw_contact_sheet` shows them.
From words to pictures: silhouettes, patterns -> item -> scene; wording -> world; all of it -> writing.
"""

from mim_lightning.data.synthetic.contact_sheet import draw_contact_sheet
from mim_lightning.data.synthetic.writer import write_synthetic_world

__all__ = ["draw_contact_sheet", "write_synthetic_world"]
