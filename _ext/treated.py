"""Where the book treats each statement of the two documents: coverage.toml quotes a sentence of the page that does it.

A heading names a subject and a learning objective promises it; neither treats it, so neither may be quoted. And one
sentence answers one statement: a quotation that serves two is refused.
"""

import re
from pathlib import Path

from _ext.evidence import EvidenceError, claims, coverage, fields, pages, table

_HEADING = re.compile(r"^#{1,6} .*$", re.M)
_OBJECTIVES = re.compile(r"^\*\*After this chapter you can\*\*\n\n(?:- .*\n(?: .*\n)*)+", re.M)


def statements(root: Path) -> list[dict]:
    """Where each claim of the two documents is treated: a few words of the sentence, which stand on that page.

    Raises EvidenceError where words or a claim are missing, where words stand in no sentence of that page, where two
    rows quote the same words, and where a claim of a document has no row. A section of `coverage` that has `says` is
    held in the same way.
    """
    known, told = pages(root), {row["id"]: row for row in claims(root)}
    rows, sections = table(root, "coverage.toml", "statement"), coverage(root)[0]
    quoted: dict[str, str] = {}
    for row in rows:
        where = f"coverage.toml, statement {row.get('claim', '?')!r}"
        fields(where, row, dict.fromkeys(("claim", "says"), str), {})
        if row["claim"] not in told:
            raise EvidenceError(f"{where}: claims.toml has no such claim")
        row["page"] = told[row["claim"]]["link"].partition("#")[0]
        _stands(known, where, row["page"], row["says"])
        _once(quoted, where, row["page"], row["says"])
    for row in sections:
        if "says" in row:
            where, page = f"coverage.toml, section {row['section']!r}", row["treated"].partition("#")[0]
            _stands(known, where, page, row["says"])
            _once(quoted, where, page, row["says"])
    held = {row["claim"] for row in rows}
    if lost := [name for name, row in told.items() if "document" in row["by"] and name not in held]:
        raise EvidenceError(f"coverage.toml: no [[statement]] says where it is treated: {', '.join(lost)}")
    return rows


def sentences(markdown: str) -> str:
    """A page without its headings and its list of what the reader will be able to do."""
    return _HEADING.sub("", _OBJECTIVES.sub("", markdown + "\n"))


def plain(text: str) -> str:
    """Words as they are read: without the marks of emphasis and code, one space between them, small letters."""
    return re.sub(r"\s+", " ", re.sub(r"[*`]", "", text)).strip().lower()


def _stands(known: dict[str, str], where: str, page: str, words: str) -> None:
    text = known.get(page, "")
    if plain(words) in plain(sentences(text)):
        return
    if plain(words) in plain(text):
        raise EvidenceError(f"{where}: {words!r} is a heading or an objective of {page}, and treats nothing")
    raise EvidenceError(f"{where}: {page} does not say {words!r}")


def _once(quoted: dict[str, str], where: str, page: str, words: str) -> None:
    key = f"{page}: {plain(words)}"
    if key in quoted:
        raise EvidenceError(f"{where}: {words!r} is quoted for {quoted[key]} already")
    quoted[key] = where
