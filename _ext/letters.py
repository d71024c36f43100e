"""Which letters in a chapter's formulas mean an axis of the notation page, so that a tap may say so.

A letter is one of postx.shapes.LETTERS only where it stands in a formula about sizes (2(K + V), not Q K^T), where the
chapter introduces it in words that fit ("a key of $K$ numbers"), and where no formula of the chapter uses it for
anything else. When in doubt, it is none: K is a filter in one chapter, H a Hessian in another.
"""

import re
from collections.abc import Iterator

from docutils import nodes

# Words near a lone $K$ that say what the notation page says of it; a letter without an entry is never explained.
WORDS = {
    "B": "batch|texts|conversations|users",
    "T": "tokens?|text",
    "W": "window",
    "H": "heads?",
    "G": "groups?|heads",
    "K": "keys?",
    "V": "values?",
    "D": "width|channels",
    "E": "experts?",
    "F": "MLP",
    "L": "layers",
    "R": "latent",
    "N": "state|channels?",
    "C": "chunks?",
    "Y": "vocabulary",
}
# The words that would give a letter to another: $N$ numbers of a key are not the state of a channel.
OTHER = {"N": "keys?|modes?|devices|springs", "V": "shape", "L": "strings?|order", "D": "neurons"}
NEAR = 9  # words on either side


def axes() -> dict[str, str]:
    """{letter: what it means}."""
    from postx.shapes import LETTERS  # imports torch: only where a page is drawn

    return LETTERS


SCRIPT = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+(?:\{[^{}]*\})?|.)"
DRESSED = re.compile(r"\\(?:math\w+|hat|bar|tilde|dot|boldsymbol)\s*(?:\{[^{}]*\}|\S)")
PLAIN = re.compile(r"\\(?:text|label|begin|end|operatorname)\s*\{[^{}]*\}")
ALONE = re.compile(r"(?<=\\sqrt)\{[A-Z]\}|(?<=\})\{[A-Z]\}")  # under a root, or a denominator: a number
VECTORS = re.compile(r"\\(?:top|odot|circ|partial|int|mathcal|mathbb|hat|bar|tilde|operatorname|nabla|lVert)\b"
                     r"|(?<![A-Za-z\\])(?:[qkvxyhAUXZQ]|S(?!\())(?![A-Za-z])|[qkvxyhSAUXZ]_|\[")  # fmt: skip


def bare(latex: str) -> set[str]:
    """The letters that stand in a formula without a subscript or an accent, and not as a script themselves.

    >>> sorted(bare(r"4\\,T K_c + D^2 \\hat W + 2^{L}"))
    ['D', 'T']
    """
    text = DRESSED.sub(" ", PLAIN.sub(" ", latex))
    text = re.sub(rf"\S\s*_\s*{SCRIPT}", " ", text)  # with its letter
    text = re.sub(rf"\^\s*{SCRIPT}", " ", text)
    return set(re.sub(r"\\[A-Za-z]+", " ", text)) & set(axes())


def called(latex: str) -> set[str]:
    """The letters that are a function, as in D(R) or O(n), not a factor, as in T(T + 1).

    >>> sorted(called("D(R) + T(T + 1) + O(N P)"))
    ['D', 'O']
    """
    return {found[1] for found in re.finditer(r"(?<![A-Za-z\\])([A-Z])\(([^()]*)\)", latex)
            if not re.search(r"[-+]", found[2])} & set(axes())  # fmt: skip


def about_sizes(latex: str) -> bool:
    """Whether a formula counts, so that its letters are sizes: no vector, no matrix, no derivative in it."""
    return not VECTORS.search(latex)


def formulas(doctree: nodes.document) -> Iterator[nodes.Element]:
    yield from doctree.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))


def sentences(doctree: nodes.document) -> Iterator[tuple[str, str]]:
    """Each formula that is one letter, with the words around it."""
    for paragraph in doctree.findall(lambda node: isinstance(node, nodes.paragraph | nodes.term)):
        parts = [leaf for leaf in paragraph.findall() if isinstance(leaf, nodes.Text | nodes.math)]
        parts = [part for part in parts if not isinstance(part.parent, nodes.math)]
        words = [f"\0{part.astext()}" if isinstance(part, nodes.math) else part.astext() for part in parts]
        for i, word in enumerate(words):
            if word[:1] == "\0" and word[1:] in axes():
                before = " ".join(words[:i]).split()[-NEAR:]
                yield word[1:], " ".join(before + [word] + " ".join(words[i + 1 :]).split()[:NEAR])


def known(doctree: nodes.document) -> set[str]:
    """The letters of this chapter's formulas that the notation page explains."""
    told, denied, used = set(), set(), set()
    for letter, words in sentences(doctree):
        if re.search(rf"\b(?:{WORDS.get(letter, '(?!)')})\b", words, re.I):
            told.add(letter)
        if letter in OTHER and re.search(rf"\b(?:{OTHER[letter]})\b", words, re.I):
            denied.add(letter)
    for formula in formulas(doctree):
        latex = formula.astext()
        if about_sizes(latex):
            used |= bare(latex)
            denied |= called(latex) - {"T"}
        else:  # T is a length wherever it stands: transposes are written otherwise
            denied |= (bare(ALONE.sub(" ", latex)) | called(latex)) - {"T"}
    return (told & used) - denied


def mark(doctree: nodes.document) -> None:
    """Mark the formulas in which a letter may be tapped."""
    letters = known(doctree)
    for formula in formulas(doctree):
        if about_sizes(formula.astext()) and bare(formula.astext()) & letters:
            formula["classes"].append("px-sizes")
