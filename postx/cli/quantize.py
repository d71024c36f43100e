"""postx quantize: the linear layers of a model in fewer bits, in a folder that every command reads."""

import inspect
from pathlib import Path


def arguments(parser):
    from postx import quant

    parser.add_argument("path", metavar="PATH", help="the model")
    parser.add_argument("out", metavar="OUT", help="the folder to write; it must not be there yet, or be empty")
    parser.add_argument("--method", default="gptq", metavar="NAME", help=f"{', '.join(quant.names())} (default gptq)")
    parser.add_argument("--bits", type=int, metavar="N", help="bits a weight (default 4; ternary has no choice)")
    parser.add_argument("--group", type=int, metavar="N", help="inputs that share a scale (default: a whole row)")
    parser.add_argument("--base", metavar="NAME", help="what rotate turns for (default uniform; gptq repairs)")
    parser.add_argument("--text", metavar="FILE", help="what to calibrate and measure on: its first three quarters and "
                        "its last (default: Python's own manual)")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="tokens of each (default 2048)")


def run(args):
    import torch

    from postx.cli import least, opened, size
    from postx.models import checkpoints, packed, quantized
    from postx.models.score import windows

    least(args, tokens=2)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT: {out} is there already; name a folder that is not, or an empty one")
    kw, bits = options(args)
    model, words = opened(args.path)
    if not model.capabilities.streams:
        raise ValueError(f"PATH: {args.path} is no language model that reads from left to right")
    learn, ask = texts(args.text)
    calibration = words.encode(learn)[: args.tokens]
    asked = words.encode(ask)[: args.tokens]
    if min(len(calibration), len(asked)) < 2:
        raise ValueError(f"--text: {args.text} is too short: a few tokens to learn from and a few to measure on")
    rows = max(1, len(calibration) // 512)
    ids = torch.tensor(calibration[: len(calibration) // rows * rows]).view(rows, -1)
    before, n, _ = windows(model, asked, words.begins)
    small, report = quantized.quantized(model, args.method, bits, ids, **kw)
    after, _, _ = windows(small, asked, words.begins)
    bytes_ = len(words.decode(asked).encode())
    loss = [float(x.sum()) / bytes_ for x in (before, after)]
    record = {"from": Path(args.path).name, "method": args.method, "bits": bits, **kw,
              "bits_per_weight": report.bits_per_weight, "weights_kept_as_they_were": report.kept,
              "measured_on": args.text or "Python's manual, validation split", "tokens": int(n.sum()),
              "bits_a_byte_before": loss[0], "bits_a_byte_after": loss[1],
              "words": {"ends": list(words.ends), "begins": list(words.begins),
                        "template": getattr(words, "template", None)}}  # fmt: skip
    path = checkpoints.save(checkpoints.PACKED, small, built(args.path, model), record, out, packed=report.stored)
    if hasattr(words, "tokenizer"):
        words.tokenizer.save(str(out / "tokenizer.json"))
    weights = sum(packed.stored_bytes(path).values())
    print(f"{report.bits_per_weight:.2f} bits a weight in {len(report.rows)} layers; {size(weights)} in all, "
          f"of which {size(2 * report.kept)} as they were, in bfloat16")  # fmt: skip
    print(f"bits a byte on {int(n.sum())} tokens: {loss[0]:.3f} before, {loss[1]:.3f} after")
    print(f"written to {out}; postx generate {out} --prompt ... runs it")


def built(path, model):
    """What builds the model: its published config.json, or the config of a kept one."""
    from postx.models import checkpoints

    if model.published:
        return {"network": "published", "config": model.published}
    if path in checkpoints.kept():
        return checkpoints.record(path)["config"]
    return checkpoints.record(checkpoints.PACKED, path)["config"]


def options(args):
    """(keyword arguments of the quantizer, bits). Raises ValueError for what the method does not take."""
    from postx import quant

    module = quant.load(args.method)
    takes, kw = inspect.signature(module.quantize).parameters, {}
    if args.base is not None:
        if args.method != "rotate":
            raise ValueError("--base: only rotate stands on another method")
        kw["base"] = args.base
        takes = takes | inspect.signature(quant.load(args.base).quantize).parameters
    if args.group is not None:
        if "group" not in takes and args.method != "rotate":
            raise ValueError(f"--group: {args.method} has groups of its own")
        kw["group"] = args.group
    allowed = getattr(module, "BITS", None)
    if allowed == ():
        if args.bits is not None:
            raise ValueError(f"--bits: {args.method} has no choice of bits")
        return kw, None
    bits = 4 if args.bits is None else args.bits
    if allowed and bits not in allowed:
        raise ValueError(f"--bits: {args.method} has {' and '.join(map(str, allowed))} bits, not {bits}")
    return kw, bits


def texts(path):
    """(a text to learn from, another to measure on)."""
    from postx.cli import text

    if path is not None:
        whole = text(path)
        cut = len(whole) * 3 // 4
        return whole[:cut], whole[cut:]
    from postx.text import load

    manual = load()
    return tuple(bytes(part[:400_000]).decode(errors="ignore").replace("\0", "\n\n")
                 for part in (manual.train, manual.validation))  # fmt: skip


