"""postx compare: several models on one text."""

import time


def arguments(parser):
    parser.add_argument("paths", metavar="PATH", nargs="+", help="the models")
    parser.add_argument("--text", required=True, metavar="FILE", help="what they are asked; - is the standard input")
    parser.add_argument("--bytes", type=int, default=20_000, metavar="N", help="of its beginning (default 20000)")
    parser.add_argument("--window", type=int, default=512, metavar="N",
                        help="tokens that a model sees at a time, half of them asked before (default 512)")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="tokens written for the speed (default 32)")


def run(args):
    from postx.cli import least, table, text

    least(args, bytes=1, window=2, new=0)
    asked = text(args.text).encode()[: args.bytes].decode(errors="ignore")
    rows = [row(path, asked, args) for path in args.paths]
    head = ["model", "bits a byte", "weights", "state at 0", "a token", "read /s", "written /s"]
    print(*table(rows, head), sep="\n")
    print(f"\n{len(asked.encode()):,} bytes of {args.text}; tokens are each model's own; {args.threads} thread(s)")


def row(path, asked, args):
    """What is known of one model after it has read the text."""
    from postx.cli import look, opened, size
    from postx.models.score import windows

    model, words = opened(path)
    can, ids = model.capabilities, words.encode(asked)
    if not can.scores:
        raise ValueError(f"{path} gives vectors for a text and no probabilities; it cannot be compared")
    begun = time.perf_counter()
    bits, tokens, exact = windows(model, ids, words.begins, args.window)
    read = int(tokens.sum()) / (time.perf_counter() - begun)
    first = 0 if words.begins else len(words.decode(ids[:1]).encode())  # nobody is asked what the text begins with
    each = float(bits.sum()) / (len(asked.encode()) - first)
    stored = look.parts(model, path)[-1][2]
    state = ("none", "")
    if can.streams:
        once, more = look.state(model)
        state = size(once), size(more) if more else "0"
    told = f"{each:.3f}" if exact else f"<= {each:.3f}"
    return path.rstrip("/").rpartition("/")[2], told, stored, *state, f"{read:.0f}", speed(model, ids, args.new)


def speed(model, ids, n):
    """Tokens a second, written after 64 of the text one by one; - for a model that does not."""
    from postx.cli.generate import stream

    if not model.capabilities.streams or n < 2:
        return "-"
    draw = {"temperature": 0.0, "top_p": None, "top_k": None, "generator": None}
    steps = stream(model, ids[:64], n, (), draw)
    next(steps)
    begun = time.perf_counter()
    return f"{sum(1 for _ in steps) / (time.perf_counter() - begun):.1f}"
