"""Everything between the book and its tools: the Sphinx extension, the evidence page, the notebook writer."""

import sys

# nbformat imports jsonschema, and that compiles a grammar for internationalized addresses if there is one: more than
# a second of every process, for a format that no notebook has. jsonschema does without it.
sys.modules.setdefault("rfc3987_syntax", None)
