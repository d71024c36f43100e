"""postx generate: text, as it is written."""

import sys
import time

PIECE = 256  # tokens of a prompt that are read at once: the logits of all of them stand in memory together


def arguments(parser):
    parser.add_argument("path", metavar="PATH", help="the model")
    parser.add_argument("--prompt", required=True, help="what to go on from; - reads it from the standard input")
    parser.add_argument("--chat", action="store_true", help="the prompt is a question to a model trained to answer")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="tokens to write at most (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default 0.8)")
    parser.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest whose probabilities reach P")
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0: the same text every time)")


def run(args):
    import torch

    from postx.cli import least, opened, size, utf8
    from postx.models import lm as lms

    least(args, tokens=0, seed=0)
    if args.seed >= 2**63:
        raise ValueError(f"--seed: expected a number below 2^63, got {args.seed}")
    lms.check_sampling(args.temperature, args.top_k, args.top_p)
    model, words = opened(args.path)
    can = model.capabilities
    if not (can.streams or can.fills_gap):
        raise ValueError(f"{args.path} gives vectors for a text and writes none")
    if not can.streams and (args.top_k, args.top_p) != (None, None):
        raise ValueError("--top-k, --top-p: a model that fills in hidden tokens draws from all of them")
    prompt = utf8("--prompt", sys.stdin.read if args.prompt == "-" else lambda: args.prompt)
    ids = words.encode(words.chat(prompt)) if args.chat else [*words.begins, *words.encode(prompt)]
    if not ids:
        raise ValueError("--prompt: expected some text to go on from")
    draw = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
            "generator": torch.Generator().manual_seed(args.seed)}  # fmt: skip
    print("" if args.chat else prompt, end="", flush=True)
    begun = time.perf_counter()
    if can.streams:
        write, state, n = Writer(words, ids), tuple, 0
        for n, (i, state) in enumerate(stream(model, ids, args.tokens, words.ends, draw), 1):  # noqa: B007, said below
            print(write(i), end="", flush=True)
        print(write.rest(), end="")
        told = f"state {size(lms.size(state()))}"
        told += f", which it never exceeds ({size(can.state_bytes)})" if can.bounded else ", growing with the text"
    else:
        n, told = args.tokens, "no state; all tokens at once, hidden ones shown two at a time"
        print(words.decode(filled(model, ids, n, draw)), end="", flush=True)
    took = time.perf_counter() - begun
    print()
    print(f"[{n} tokens, {n / took:.1f} a second with the prompt's {len(ids)}; {told}]", file=sys.stderr)


def stream(model, ids, n, ends, draw):
    """(token, what gives the state before it) one after the other, at most n, up to one of `ends`.

    Tokens are read as `postx.models.lm.generate` reads them: by what is faster than calls of the model, where it fits.
    """
    import torch

    from postx.models.lm import faster, sample
    from postx.shapes import trusted

    with torch.no_grad():
        S = None
        for t in range(0, len(ids), PIECE):
            logits, S = model(torch.tensor([ids[t : t + PIECE]]), S)
        logits_BY, fast = logits[:, -1], faster(model, S, 1, n - 1)
        for k in range(n):
            new_B = sample(logits_BY, draw["temperature"], draw["top_k"], draw["generator"], top_p=draw["top_p"])
            if int(new_B) in ends:
                return
            yield int(new_B), (lambda S=S: S) if fast is None else fast.state
            if k == n - 1:
                return
            with trusted():  # the model's own state: what fits the prompt fits a token
                if fast is None:
                    logits, S = model(new_B[:, None], S, inplace=True)
                    logits_BY = logits[:, -1]
                else:
                    logits_BY = fast(new_B)


def filled(model, ids, n, draw):
    """What a denoiser writes behind a prompt, all n tokens together."""
    import torch

    from postx import diffusion
    from postx.diffusion import masked

    if not n:
        return []
    given = diffusion.blank(1, len(ids) + n, torch.tensor([ids]))
    more = {"temperature": draw["temperature"], "generator": draw["generator"]}
    found = masked.remask(model, given, model.Y, steps=max(1, n // 2), **more)
    return found.ids_BT[0, len(ids) :].tolist()


class Writer:
    """Text from tokens as they come behind others: a token that ends within a character waits for the next."""

    def __init__(self, words, before=()):
        self.words, self.before, self.open = words, list(before[-8:]), []

    def __call__(self, token):
        """What can be printed now that this token is there; constant memory."""
        self.open.append(token)
        # Behind what was printed last, as some vocabularies drop the space before a first word.
        whole = self.words.decode(self.before + self.open)
        if whole.endswith("\ufffd") and len(self.open) < 8:
            return ""
        return self.rest()

    def rest(self):
        """What still waits, whole characters or not."""
        new = self.words.decode(self.before + self.open)[len(self.words.decode(self.before)) :]
        self.before, self.open = self.open or self.before, []
        return new
