"""One line that is written over: how far a run is, its loss, its speed, and the time left."""

import sys
import time


class Progress:
    """A context in which `show(row)` writes the line to stderr; with config.quiet it writes nothing."""

    def __init__(self, config):
        self.config, self.quiet, self.width, self.first = config, config.quiet, 0, None

    def __enter__(self):
        self.clock = time.perf_counter()
        return self

    def show(self, row):
        if self.quiet:
            return
        step, steps = row["step"], self.config.steps
        spent = time.perf_counter() - self.clock
        if self.first is None:  # the first row holds compilation and warm-up: speed is measured from it on
            self.first, speed, left = (
                (step, row["tokens"], spent),
                row["tokens"] / max(row["seconds"], 1e-9),
                None,
            )
        else:
            since = max(spent - self.first[2], 1e-9)
            speed = (row["tokens"] - self.first[1]) / since
            left = since / (step - self.first[0]) * (steps - step)
        bar = ("#" * (20 * step // steps)).ljust(20, ".")
        line = f"{step}/{steps} [{bar}] loss {row['loss']:.4f}, {speed:,.0f} tokens/s"
        line += "" if left is None else f", {left:.0f} s left"
        sys.stderr.write("\r" + line.ljust(self.width))
        sys.stderr.flush()
        self.width = len(line)

    def __exit__(self, *error):
        if self.width:
            sys.stderr.write("\n")
