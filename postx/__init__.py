"""postx: what comes after the Transformer, small enough to read in an afternoon.

Sequence mixers are in `postx.mixers`, the recurrences that they share in `postx.scans`, their bills in
`postx.cost`, and the sliders of the book in `postx.explore`.
"""

__version__ = "0.1.0"
