r"""A recurrence as a docstring writes it, in TeX: letters of Greek by name, S' transposed, <- an assignment.

>>> tex("S <- exp(g) S + beta k (v - S' k)'")
'S \\leftarrow \\exp (g) S + \\beta k (v - S^\\top k)^\\top'
"""

import re

GREEK = ("alpha", "beta", "gamma", "delta", "theta", "phi", "sigma", "tau", "Lambda")
WORDS = {name: "\\" + name for name in (*GREEK, "exp", "max")} | {"sum": r"\sum", "o": r"\circ", "kbar": r"\bar k"}
WORDS |= {"Uk": "U^k", "Uv": "U^v"} | {d: d for d in ("dh", "dt", "kk")}  # letters, and no words
MARKS = {"<-": r"\leftarrow", "<=": r"\le", "..": r"\dots", "...": r"\dots", "*": r"\odot", "'": r"^\top"}
PAIRS = {"(": ")", "[": "]", "{": "}"}
# A gap of several, a prime behind what it transposes, words of prose, numbers, marks.
TOKEN = re.compile(r"\s+|[A-Za-z]+(?:'s\b)?|\d+|<-|<=|\.\.\.?|.")
OPERATORS, CUT = {"+", "-", "/"}, "\0"
JOINS = set("=+-*/<:,|([") | {"<-", "<=", "..", "...", "'"}  # no gap beside these but their own


def tex(line: str) -> str:
    """The TeX of one line. Raises ValueError where a bracket is not closed."""
    return " ".join(piece.removeprefix("{}") for piece in pieces(line)).replace("~ ", "~")


def pieces(line: str) -> list[str]:
    """The same, taken apart where a narrow page may break it: before an operator, and between words."""
    out, tokens, last = [], TOKEN.findall(line), ""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.isspace():
            near = tokens[at + 1] if at + 1 < len(tokens) else ""
            wide = _is_word(last) or _is_word(near)
            apart = wide and not {last, near} & JOINS
            operator = near in OPERATORS and tokens[at + 2 : at + 3] == [" "] and last
            out.append(CUT + r"\quad " if len(token) > 1 else CUT + "{}" if operator else "~" + CUT if apart else " ")
        elif token == "sqrt":
            end = _closing(tokens, at + 1)
            out.append(rf"\sqrt{{{tex(''.join(tokens[at + 2 : end]))}}}")
            at, token = end, ")"
        elif token in "_^":
            end = _script(tokens, at + 1)
            inside = "".join(tokens[at + 1 : end + 1])
            inside = inside[1:-1] if inside[0] in PAIRS else inside
            out.append(f"{token}{{{inside if inside.isalnum() else tex(inside)}}}")
            at, token = end, "x"
        elif token == "." and (last == "(" or (at and tokens[at - 1].isspace())):
            out.append(r"\cdot ")
        else:
            out.append(_one(token))
        if not token.isspace():
            last = token
        at += 1
    found = re.sub(rf" +(?=[ )\]}},;^_{CUT}]|$)", "", "".join(out)).strip()
    return [part for part in found.split(CUT) if part]


def _one(token):
    if token in MARKS:
        return MARKS[token] + " "
    if token in WORDS:
        return WORDS[token] + " " * WORDS[token].startswith("\\")
    if token in "{}":
        return "\\" + token
    return rf"\text{{{token}}}" if _is_word(token) else token


def _is_word(token):
    return len(token) > 1 and token[0].isalpha() and token not in WORDS


def _closing(tokens, start):
    depth = 0
    for at in range(start, len(tokens)):
        depth += (tokens[at] in PAIRS) - (tokens[at] in PAIRS.values())
        if not depth:
            return at
    raise ValueError(f"a bracket is not closed in {''.join(tokens)!r}")


def _script(tokens, start):
    """The last token of what is raised or lowered: a group in brackets, letters, or a number with sign and fraction."""
    if tokens[start] in PAIRS:
        return _closing(tokens, start)
    end = start + (tokens[start] == "-")
    return end + 2 if tokens[end].isdigit() and tokens[end + 1 : end + 2] == ["/"] else end
