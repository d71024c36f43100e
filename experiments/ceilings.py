"""What one thread of this processor multiplies and reads in a second at most: ceilings for the scorecard's floors.

    python -m experiments.ceilings          record them (a quarter of a minute), experiments/results/ceilings.json

The most of many repeats, since a ceiling is what nothing exceeds; in the processor's time, as the scorecard's. Reading
is the sum of a table that no cache holds, multiplying a product of two square matrices in float32.
"""

import datetime
import json
import platform
import time

from experiments.runner.results import RESULTS

FILE, REPEATS = RESULTS / "ceilings.json", 30
WIDTH, NUMBERS = 1024, 2**26  # a square matrix, and 256 MiB


def least(run):
    """The least seconds of the repeats, after one run that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times[1:])


def measured():
    """{"flops": a second, "bandwidth": bytes a second} of this machine, one thread."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(2, WIDTH, WIDTH).unbind()
    table = torch.zeros(NUMBERS)
    return {"flops": 2 * WIDTH**3 / least(lambda: a @ b), "bandwidth": 4 * NUMBERS / least(table.sum)}


def main():
    import torch

    found = {name: float(f"{x:.3g}") for name, x in measured().items()}
    about = {"device": f"CPU, {platform.machine()}", "threads": 1, "repeats": REPEATS, "clock": "process_time",
             "torch": torch.__version__, "date": datetime.date.today().isoformat()}  # fmt: skip
    FILE.write_text(json.dumps(found | about, indent=1) + "\n", encoding="utf8")
    print(FILE.read_text(encoding="utf8"))


if __name__ == "__main__":
    main()
