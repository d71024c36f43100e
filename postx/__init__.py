"""postx: what comes after the Transformer, in files of one idea each.

Sequence mixers are in `postx.mixers`, the recurrences that they share in `postx.scans`, their bills in
`postx.cost`, and the sliders of the book in `postx.explore`.
"""

__version__ = "0.1.0"
