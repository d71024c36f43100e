"""A fixed map from words to numbers, the same in Python and on the page: no training, no file.

A word's letters are hashed, the hash starts a small generator, and its first numbers are the word's vector. So the same
word has the same vector everywhere, and two different words have nearly nothing in common.
"""

import unicodedata

import torch

K, MOST = 32, 12  # numbers in a vector; words in a text
TEXT = "the door is open then the door is closed the door is"

# Words that carry grammar and little else: a gate hardly opens for them.
FILLERS = """
    a about after all also an and any are as at be been before but by can could did do does for from had has have he
    her here him his how i if in into is it its just may me more most my no not now of on one or our out over she so
    some than that the their them then there these they this those to too up us very was we were what when where
    which while who why will with would yet you your
"""
FILLERS = frozenset(FILLERS.split())


def split(text):
    """(the first 12 words of a text, small; how many more there are). A word is letters, digits and apostrophes."""
    kept = (c if unicodedata.category(c)[0] in "LMN" or c in "'’" else " " for c in text.lower())
    words = "".join(kept).split()
    return words[:MOST], max(0, len(words) - MOST)


def numbers(name):
    """Endless numbers in [0, 1) that depend on `name` alone.

    Its code points are hashed by FNV-1a in 32 bits (Fowler, Noll and Vo); from there a linear congruential generator
    runs (multiplier 1664525, increment 1013904223: Press et al., "Numerical Recipes", 2nd edition, sec. 7.1).
    """
    state = 2166136261
    for letter in name:
        state = (state ^ ord(letter)) * 16777619 % 2**32
    while True:
        state = (state * 1664525 + 1013904223) % 2**32
        yield state / 2**32


def vector(name, width=K):
    """`width` numbers of `name`, between -1 and 1 and then brought to length 1: [width], float64."""
    source = numbers(name)
    x = torch.tensor([2 * next(source) - 1 for _ in range(width)], dtype=torch.float64)
    return x / x.square().sum().sqrt()


def gates(words, filler):
    """[T]: how far each word opens a gate, 1 for words of content and `filler` for the others."""
    return torch.tensor([filler if word in FILLERS else 1.0 for word in words], dtype=torch.float64)
