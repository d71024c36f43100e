"""postx look: what a model is made of, and where its bytes are."""

import itertools


def arguments(parser):
    parser.add_argument("path", metavar="PATH", help="the model")


def run(args):
    from postx.cli import opened, size, table
    from postx.models.lm import count

    model, words = opened(args.path)
    total = count(model)
    print(f"{args.path}: {type(model).__name__} of {total.total:,} parameters", end="")
    print(f", {total.active:,} of them read for a token" if total.active != total.total else "")
    print(f"pattern     {pattern(model)}")
    print(f"vocabulary  {words.size:,} tokens")
    can = model.capabilities
    yes = [name.replace("_", " ") for name, x in can._asdict().items() if x is True]
    yes += [f"scores {can.scores}"] if can.scores else []
    print(f"can         {', '.join(yes) or 'give vectors'}")
    if can.streams:
        once, each = state(model)
        print(f"state       {size(once)}" + (f" and {size(each)} a token" if each else ", however long the text"))
    print()
    print(*table(parts(model, args.path), ["where the bytes are", "parameters", "bytes", "share"]), sep="\n")


def pattern(model):
    """The places in a line, runs of one kind counted: 30 x A."""
    names = ["".join(key if len(key) == 1 else f"({key})" for key, _ in block.kept) or
             type(block.mlp).__name__ for block in model.blocks]  # fmt: skip
    runs = [(name, len(list(group))) for name, group in itertools.groupby(names)]
    return " ".join(f"{n} x {name}" if n > 1 else name for name, n in runs)


def state(model):
    """(bytes of the state that are there from the start, bytes that each token adds)."""
    short, long = (model.state_bytes(T) for T in (64, 128))
    each = (long - short) // 64
    return short - 64 * each, each


def parts(model, path):
    """Rows: what, parameters, bytes as they are stored, share of all bytes."""
    from pathlib import Path

    from postx.cli import size
    from postx.models import checkpoints, packed

    kept = path in checkpoints.kept()
    file = checkpoints.FOLDER / f"{path}.safetensors" if kept else Path(path) / f"{checkpoints.PACKED}.safetensors"
    stored = packed.stored_bytes(file) if file.exists() else {}
    found = {}
    for key, x in model.state_dict().items():
        what = kind(model, key)
        here = [n for name, n in stored.items() if name == key or name.startswith(f"{key}/")]
        numbers, bytes_ = found.get(what, (0, 0))
        found[what] = numbers + x.numel(), bytes_ + (sum(here) if here else x.numel() * x.element_size())
    total = sum(bytes_ for _, bytes_ in found.values())
    rows = [(what, f"{n:,}", size(b), f"{100 * b / total:.1f}%") for what, (n, b) in found.items()]
    note = "as stored" if stored else "in memory"
    return [*rows, (f"all, {note}", f"{sum(n for n, _ in found.values()):,}", size(total), "")]


def kind(model, key):
    """The row that a parameter belongs to."""
    if not key.startswith("blocks."):
        names = {"embed": "embedding", "head": "head", "shared": "shared block"}
        return names.get(key.split(".")[0], "norms and the rest")
    _, i, where, *rest = key.split(".")
    block = model.blocks[int(i)]
    if where == "mix":
        letter = block.kept[int(rest[0])][0]
        return f"mixers {letter}, {type(block.mix[int(rest[0])]).__module__.rpartition('.')[2]}"
    return {"mlp": f"{type(block.mlp).__name__}s"}.get(where, "norms and the rest")
