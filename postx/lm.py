"""Language models from pattern strings: each letter is one place in a residual stack.

    x = embed(ids)        for each place: x = x + mixer(norm(x)), x = x + mlp(norm(x))        logits = head(norm(x))

`LM("MMMMMMMA", D=64)` is seven Mamba layers and one of attention. `MIXERS` is the table of letters; "(AS)" puts two
mixers side by side on the same input (Falcon-H1). `mlp` says what follows each mixer: "F" a gated MLP, "E" a
mixture of experts, "-" nothing. F and E in the pattern itself are places without a mixer (Nemotron-H).
"""

import math
import re
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from postx import mixers
from postx.nn import MLP, MoE, RMSNorm
from postx.shapes import check

# letter: (mixer, default options)
MIXERS = {
    "A": ("attention", {}),
    "L": ("attention", {"window": 64}),
    "K": ("mla", {}),
    "M": ("mamba", {}),
    "S": ("ssd", {}),
    "I": ("s4d", {}),
    "H": ("hyena", {}),
    "C": ("shortconv", {}),
    "N": ("linear", {}),
    "T": ("retnet", {}),
    "W": ("gla", {}),
    "D": ("deltanet", {}),
    "G": ("gated_deltanet", {}),
    "R": ("rglru", {}),
    "4": ("rwkv4", {}),
    "6": ("rwkv6", {}),
    "7": ("rwkv7", {}),
}
MLPS = {"F": MLP, "E": MoE}
WITHOUT_MLP = "MS"  # a Mamba block has its own gate and expansion


class Count(NamedTuple):
    """Parameters of a model, and those that one token reads: without the experts that it does not choose."""

    total: int
    active: int


def places(pattern):
    """The places of a pattern, each a string of letters: places("M(AS)F") == ["M", "AS", "F"].

    Raises ValueError for a letter that is not in the table, or brackets that do not match.
    """
    found = re.findall(r"\(([^()]+)\)|([^()])", pattern)
    names = [group or letter for group, letter in found]
    if "".join(f"({g})" if g else x for g, x in found) != pattern or not names:
        raise ValueError(f"pattern: cannot read {pattern!r}: letters, and groups such as (AS)")
    for name in names:
        for letter in name:
            if letter not in MIXERS and not (letter in MLPS and name == letter):
                table = ", ".join(f"{x} {m}" for x, (m, _) in MIXERS.items())
                raise ValueError(f"pattern: no letter {letter!r} in {pattern!r}; there are {table}, F and E")
    return names


class Block(nn.Module):
    """One place: a norm and its mixers side by side, then a norm and an MLP; each adds to the stream."""

    def __init__(self, D, letters, mlp, options, eps):
        super().__init__()
        self.norm = RMSNorm(D, eps) if letters else None
        self.mix = nn.ModuleList()
        for letter in letters:
            name, default = MIXERS[letter]
            self.mix.append(mixers.load(name).Layer(D, **default | options.get(letter, {})))
        self.mlp_norm = RMSNorm(D, eps) if mlp != "-" else None
        self.mlp = MLPS[mlp](D, **options.get(mlp, {})) if mlp != "-" else None
        self.inplace = [MIXERS[letter][0] in ("attention", "mla") for letter in letters]

    def forward(self, x, S=None, *, inplace=False, **side):
        load = None
        if self.norm is not None:
            seen, added, after = self.norm(x), 0, []
            for i, mix in enumerate(self.mix):
                more = {"inplace": inplace} if self.inplace[i] else {}
                y, S_i = mix(seen, S[i] if S is not None else None, **more, **side)
                added = added + y
                after.append(S_i)
            x, S = x + added, tuple(after)
        else:
            S = ()
        if self.mlp is not None:
            y = self.mlp(self.mlp_norm(x))
            if isinstance(y, tuple):
                y, load = y
            x = x + y
        return x, S, load


class LM(nn.Module):
    """A causal language model over Y tokens: `logits_BTY, S = lm(ids_BT, S=None, lengths_B=None, reset_BT=None)`.

    S has one entry a place, a tuple with the state of each of its mixers. `options` are keyword arguments of the
    layers by letter, {"A": {"H": 4, "window": 128}, "F": {"F": 256}}. mlp is one letter for all places or one for
    each; by default F after every mixer but Mamba's, which have their own gate.
    """

    def __init__(self, pattern, D, Y=256, *, mlp=None, options=None, tied=True, eps=1e-5, std=0.02, form="auto"):
        super().__init__()
        names, options = places(pattern), options or {}
        mlps = self._mlps(names, mlp)
        unknown = set(options) - set("".join(names)) - set(mlps)
        if unknown:
            raise ValueError(f"options: {', '.join(sorted(unknown))} not in the pattern {pattern!r} or its MLPs")
        self.pattern, self.form = pattern, form
        self.embed = nn.Embedding(Y, D)
        self.blocks = nn.ModuleList(
            Block(D, "" if name in MLPS else name, m, options, eps) for name, m in zip(names, mlps, strict=True)
        )
        self.norm = RMSNorm(D, eps)
        self.head = None if tied else nn.Linear(D, Y, bias=False)
        self._start(std)

    @staticmethod
    def _mlps(names, mlp):
        if mlp is None:
            return [n if n in MLPS else "-" if set(n) <= set(WITHOUT_MLP) else "F" for n in names]
        free = [n for n in names if n not in MLPS]
        if len(mlp) not in (1, len(free)) or set(mlp) - set(MLPS) - {"-"}:
            raise ValueError(f"mlp: expected 1 or {len(free)} letters out of F, E and -, got {mlp!r}")
        rest = iter(mlp * len(free) if len(mlp) == 1 else mlp)
        return [n if n in MLPS else next(rest) for n in names]

    def _start(self, std):
        """Normal weights of deviation std; what writes to the stream is scaled by (2 L)^-1/2 (GPT-2)."""
        nn.init.normal_(self.embed.weight, std=std)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        scale = (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            parts = [*block.mix, *([block.mlp] if block.mlp is not None else [])]
            for part in parts:
                for name, child in part.named_children():
                    if isinstance(child, nn.Linear) and name not in ("delta", "a", "decay"):
                        nn.init.normal_(child.weight, std=std * (scale if name == "out" else 1))
                        if child.bias is not None:
                            nn.init.zeros_(child.bias)
                if isinstance(part, MoE):
                    nn.init.normal_(part.out_EFD, std=std * scale)

    def forward(self, ids_BT, S=None, *, lengths_B=None, reset_BT=None, inplace=False, with_load=False):
        """Logits of the next token at every token, and the state after the last. with_load adds the MoE's Loads."""
        check({}, ids_BT=ids_BT)
        if S is not None and len(S) != len(self.blocks):
            raise ValueError(f"S: expected {len(self.blocks)} entries, one a place, got {len(S)}")
        x, after, loads = self.embed(ids_BT), [], []
        side = {"lengths_B": lengths_B, "reset_BT": reset_BT, "form": self.form, "inplace": inplace}
        for i, block in enumerate(self.blocks):
            x, S_i, load = block(x, None if S is None else S[i], **side)
            after.append(S_i)
            loads += [load] if load is not None else []
        x = self.norm(x)
        logits = functional.linear(x, self.embed.weight if self.head is None else self.head.weight)
        return (logits, tuple(after), loads) if with_load else (logits, tuple(after))

    def loss(self, ids_BT, targets_BT=None, *, balance=0.01, **side):
        """Mean cross-entropy in nats over targets that are not -100, plus `balance` times the MoE balance losses.

        Without targets every token predicts the one after it.
        """
        if targets_BT is None:
            ids_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
        logits, _, loads = self(ids_BT, with_load=True, **side)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=-100)
        return loss + balance * sum(load.balance for load in loads) if loads else loss

    def state_floats(self, T, B=1):
        """Floating-point numbers in the state after T tokens, a complex one counted as two. Computes nothing."""
        return sum(x.numel() * (2 if x.is_complex() else 1) for x in leaves(self._meta_state(T, B)) if floating(x))

    def state_bytes(self, T, B=1):
        """Bytes of the state after T tokens, counters included, at the dtype of the weights. Computes nothing."""
        return size(self._meta_state(T, B))

    def _meta_state(self, T, B):
        named = [*self.named_parameters(), *self.named_buffers()]
        weights = {name: torch.empty_like(x, device="meta") for name, x in named}
        ids = torch.zeros(B, T, dtype=torch.int64, device="meta")
        with torch.no_grad():
            return torch.func.functional_call(self, weights, (ids,))[1]


def floating(x):
    """Whether x holds real or complex numbers rather than counters."""
    return x.is_floating_point() or x.is_complex()


def leaves(S):
    """The tensors of a state, in order."""
    return [x for part in S for x in leaves(part)] if isinstance(S, tuple) else [S]


def size(S):
    """Bytes of a state."""
    return sum(x.numel() * x.element_size() for x in leaves(S))


def count(lm):
    """Parameters of a model: Count(total, active)."""
    total = sum(p.numel() for p in lm.parameters())
    return Count(total, total - sum(m.idle() for m in lm.modules() if isinstance(m, MoE)))


@torch.no_grad()
def generate(lm, prompt_BT, n, *, temperature=1.0, top_k=None, generator=None, S=None):
    """Continue each row by n tokens: (ids_BT of n new tokens, S). The prefix is read once.

    temperature=0 takes the likeliest token. top_k keeps only the k likeliest. Each new token is one call of the
    model with the state, so memory is the state's: constant for recurrent layers, a ring for windowed ones.
    """
    logits, S = lm(prompt_BT, S)
    chosen = []
    for i in range(n):
        ids_B1 = sample(logits[:, -1], temperature, top_k, generator)[:, None]
        chosen.append(ids_B1)
        if i < n - 1:
            logits, S = lm(ids_B1, S, inplace=True)
    return torch.cat(chosen, 1), S


def sample(logits_BY, temperature=1.0, top_k=None, generator=None):
    """Draw one token a row from softmax(logits / temperature) over the top_k likeliest; 0 takes the likeliest."""
    if temperature < 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature: expected a finite number >= 0, got {temperature}")
    if temperature == 0:
        return logits_BY.argmax(-1)
    logits = logits_BY.float() / temperature
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
