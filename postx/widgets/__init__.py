"""The tools on the pages: what each shows, said once here; its script is _static/widgets/NAME.js.

    from postx.widgets import matrix, memory

    matrix.matrix("ssd")     the 12 x 12 table M of y = M v that a text makes, for eight mixers
    memory.memory("delta")   a table that pictures are written into and read from
"""
