"""Everything between the book and its tools: the Sphinx extension, the evidence page, the notebook writer."""
