"""The command line: postx generate, look, quantize, compare, plan (or python -m postx ...).

Each command is a file of this folder with `arguments(parser)` and `run(args)`. What goes wrong is said in one line, and
the exit code is 1; 2 where the command itself cannot be understood.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

COMMANDS = {
    "generate": "go on writing after a prompt",
    "look": "say what a model is made of, and where its bytes are",
    "quantize": "write the model in fewer bits, with the loss before and after",
    "compare": "bits a byte, size, state and speed of several models on a text of yours",
    "plan": "memory, time and price of a model on a device; which models fit",
}
KEPT = sorted(path.stem for path in (Path(__file__).parents[1] / "weights").glob("*.safetensors"))
MODELS = f"""A model (PATH) is
  the name of one that comes with the package (2 to 4 million weights, bytes):
  {", ".join(KEPT) or "none here, a checkout of the repository has some"};
  a folder with config.json and safetensors, as published, or one that `postx quantize` wrote;
  a file NAME.gguf;
  or hf:owner/name[@revision], which is fetched from the hub.
Real models need a few more packages: pip install 'postx[real]'."""
SAID = (ValueError, OSError, ModuleNotFoundError, MemoryError)  # what a command says in one line; others are faults


def parser():
    whole = argparse.ArgumentParser(
        prog="postx", description="Language models that came after the Transformer, and those before: "
        "run, inspect, shrink and compare them.", epilog=MODELS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    each = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in COMMANDS.items():
        module = importlib.import_module(f"postx.cli.{name}")
        one = each.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.",
                              epilog=getattr(module, "EPILOG", MODELS),
                              formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        module.arguments(one)
        one.add_argument("--threads", type=int, default=1, metavar="N",
                         help="processor threads (default 1: beside other programs more are often slower)")  # fmt: skip
    return whole


def main(argv=None):
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        from postx import scans

        scans.set_threads(args.threads)
        importlib.import_module(f"postx.cli.{args.command}").run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except SAID as error:
        told = " ".join(str(error).split()) or type(error).__name__
        print(f"postx {args.command}: {told}", file=sys.stderr)
        return 1
    return 0


def size(n):
    """Bytes as a person reads them: 512 B, 92.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000


def table(rows, head):
    """Lines of a table, the first column to the left and numbers to the right."""
    rows = [head, *[[str(x) for x in row] for row in rows]]
    wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        cells = (x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, wide, strict=True)))
        yield "  ".join(cells).rstrip()


def opened(path):
    """(model, vocabulary) of a PATH."""
    from postx.models import checkpoints
    from postx.models.loading import hub, words

    if path.startswith("hf:"):
        path = hub.fetched(path)
    return checkpoints.load(path), words.of(path)


def text(path):
    """The text of a file, or of the standard input for -. Raises ValueError for one that is empty or no UTF-8."""
    read = sys.stdin.read if path == "-" else lambda: Path(path).read_text(encoding="utf8")
    found = utf8(f"--text: {path}", read)
    if not found:
        raise ValueError(f"--text: {path} is empty")
    return found


def utf8(name, read):
    """The text that read() gives. Raises ValueError for one that is no UTF-8."""
    try:
        found = read()
        found.encode()  # where the system reads bytes that are no text, they come as half characters
    except UnicodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error})") from error
    return found


def least(args, **known):
    """Raise ValueError for an option below the number given here."""
    for name, n in known.items():
        if getattr(args, name) < n:
            raise ValueError(f"--{name}: expected a number from {n} up, got {getattr(args, name)}")
