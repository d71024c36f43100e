"""Language models from patterns: each letter of a string, or each name of a list, is one place in a residual stack.

    x = embed(ids)      at each place: x = x + mixer(norm(x)), x = x + mlp(norm(x))      logits = head(norm(x))

`LM("MMMMMMMA", D=64)` is seven Mamba layers and one of attention. The letters are in `postx.models.blocks`; "(AS)"
puts two mixers side by side on the same input (Falcon-H1). `mlp` says what follows each mixer: "F" a gated MLP, "E" a
mixture of experts, "-" nothing. F and E in the pattern itself are places without a mixer (Nemotron-H).
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from postx.models import capabilities, graph, writer
from postx.models.blocks import MIXERS, NORMS, Block, Context, Place, Shared, mlps, module, places
from postx.models.nn import MoE
from postx.models.states import floating, leaves, size
from postx.shapes import check, check_lengths, is_trusted, map_state, positive, state_dtype, trusted

__all__ = ["LM", "MIXERS", "Count", "count", "generate", "leaves", "places", "sample", "size"]


class Count(NamedTuple):
    """Parameters of a model, and those that one token reads: without the experts that it does not choose."""

    total: int
    active: int


class LM(nn.Module):
    """A causal language model over Y tokens: `logits_BTY, S = lm(ids_BT, S=None, lengths_B=None, reset_BT=None)`.

    S has one entry a place, a tuple with the state of each of its mixers. `options` are keyword arguments of the
    layers by letter, {"A": {"H": 4, "window": 128}, "F": {"F": 256}}. mlp is one letter for all mixers or one for
    each; by default F after every mixer but Mamba's, which have their own gate. tied: the head is the embedding.
    norm: "rms" or "layer"; embed_norm: one after the embedding too (RWKV). form: how mixers compute ("auto", or a form
    that all of them have). embed_scale multiplies the embedding, logit_scale the logits; softcap=c then bends them to
    c tanh(logits / c) (Gemma, Granite). carried: see `Block`. What crosses places goes through one dictionary of each
    call: the embedding and shared blocks (Z), the first value of RWKV-7. Built on the meta device it takes no memory.
    """

    def __init__(
        self, pattern, D, Y=256, *, mlp=None, options=None, tied=True, norm="rms", embed_norm=False,
        eps=1e-5, std=0.02, form="auto", embed_scale=1.0, logit_scale=1.0, softcap=None, carried=(),
    ):  # fmt: skip
        super().__init__()
        names, options = places(pattern), options or {}
        follow = mlps(names, mlp)
        unknown = set(options).difference(*names, follow)
        if unknown:
            raise ValueError(f"options: {', '.join(sorted(unknown))} not in the pattern {pattern!r} or its MLPs")
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(map(repr, NORMS))}, got {norm!r}")
        self.pattern, self.form = pattern, form
        self.embed_scale, self.logit_scale, self.softcap = embed_scale, logit_scale, softcap
        self.embed = nn.Embedding(Y, D)
        self.embed_norm = NORMS[norm](D, eps) if embed_norm else None
        self.blocks, seen = nn.ModuleList(), set()
        for letters, after in zip(names, follow, strict=True):
            first = {key: getattr(module(key), "FIRST", {}) for key in letters if key not in seen}
            mine = options | {key: options.get(key, {}) | more for key, more in first.items() if more}
            self.blocks.append(Block(D, letters, after, mine, NORMS[norm], eps, carried))
            seen.update(letters)
        for number, place in enumerate(part for block in self.blocks for part in block.mix if isinstance(part, Place)):
            place.number = number
        self.shared = Shared(D, eps=eps, **options.get("Z", {})) if "Z" in names else None
        self.norm = NORMS[norm](D, eps)
        self.head = None if tied else nn.Linear(D, Y, bias=False)
        self._start(std)

    def _start(self, std):
        """Normal weights of deviation std; what writes to the stream is scaled by (2 L)^-1/2 (GPT-2, sec. 2.3).

        Only plain projections: what a mixer starts in its own way (decays, filters, taps, `OWN` projections) stays.
        """
        nn.init.normal_(self.embed.weight, std=std)
        scale = (2 * len(self.blocks)) ** -0.5
        parts = [part for block in self.blocks for part in (*block.mix, block.mlp) if part is not None]
        if self.shared is not None:
            parts += [part for one in (self.shared, *self.shared.others) for part in (one.attention, one.mlp)]
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        for part in parts:
            part = [part, part.shared] if isinstance(part, MoE) and part.shared is not None else [part]
            for name, child in (pair for p in part for pair in p.named_children()):
                if isinstance(child, nn.Linear) and name not in getattr(part[0], "OWN", ()):
                    nn.init.normal_(child.weight, std=std * (scale if name == "out" else 1))
                    if child.bias is not None:
                        nn.init.zeros_(child.bias)
            if isinstance(part[0], MoE):
                nn.init.normal_(part[0].out_EFD, std=std * scale)

    def forward(
        self, ids_BT, S=None, *, lengths_B=None, reset_BT=None, inplace=False, form=None, with_load=False
    ):
        """Logits of the next token at every token, and the state after the last.

        inplace=True lets attention write into the S it was given, for generation. form: as the constructor's, for
        this call. with_load=True returns the `Load` of each mixture of experts as a third output. Raises ValueError
        for an S of another number of places.
        """
        check(ids_BT=ids_BT)
        if S is not None and len(S) != len(self.blocks):
            raise ValueError(f"S: expected {len(self.blocks)} entries, one a place, got {len(S)}")
        if S is not None and not is_trusted():
            for block, S_i in zip(self.blocks, S, strict=True):
                block.check_state(S_i)
        if S is not None and ids_BT.is_meta and any(block.caches for block in self.blocks):
            raise ValueError("S: how full a cache is cannot be read on the meta device; give it real tensors")
        check_lengths(lengths_B, *ids_BT.shape)
        if reset_BT is not None:
            check({"B": ids_BT.shape[0], "T": ids_BT.shape[1]}, reset_BT=reset_BT)
            if reset_BT.dtype != torch.bool:
                raise ValueError(f"reset_BT: expected bool, got {reset_BT.dtype}")
        if len(ids_BT) == 0:  # layers cannot tell the sizes of a batch without a row: they are those of one row
            logits, S, loads = self(ids_BT.new_zeros(1, ids_BT.shape[1]), form=form, with_load=True)
            S, loads = map_state(lambda x: x[:0], S), [type(load)(*(0 * x for x in load)) for load in loads]
            return (logits[:0], S, loads) if with_load else (logits[:0], S)
        x, cross = self.enter(ids_BT)
        context = Context(lengths_B, reset_BT, form or self.form, inplace, cross)
        after, loads = [], []
        for i, block in enumerate(self.blocks):
            x, S_i, load = block(x, None if S is None else S[i], context)
            after.append(S_i)
            if load is not None:
                loads.append(load)
        weight = self.embed.weight if self.head is None else self.head.weight
        logits = self.bent(functional.linear(self.norm(x), weight))
        return (logits, tuple(after), loads) if with_load else (logits, tuple(after))

    def enter(self, ids_BT):
        """What the first place reads, x_BTD, and the dictionary of what crosses places."""
        x = self.embed(ids_BT)
        x = x if self.embed_scale == 1 else x * self.embed_scale
        x = x if self.embed_norm is None else self.embed_norm(x)
        return x, {"embedding": x, "shared": self.shared}

    def bent(self, logits):
        """The head's product as the model gives it: scaled, and held below softcap."""
        logits = logits if self.logit_scale == 1 else logits * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def loss(self, ids_BT, targets_BT=None, *, balance=0.01, **side):
        """Mean cross-entropy in nats over targets that are not -100, plus `balance` times the MoE balance losses.

        Without targets every token predicts the one after it. Targets past a row's length (lengths_B) do not count.
        """
        if targets_BT is None:
            ids_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
            for key, cut in (("lengths_B", lambda x: (x - 1).clamp(min=0)), ("reset_BT", lambda x: x[:, :-1])):
                if side.get(key) is not None:
                    side[key] = cut(side[key])
        logits, _, loads = self(ids_BT, with_load=True, **side)
        if side.get("lengths_B") is not None:  # what stands past a row's end is not asked, whatever it is
            real_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) < side["lengths_B"][:, None]
            targets_BT = targets_BT.masked_fill(~real_BT, -100)
        logits = logits.flatten(0, 1).to(state_dtype(logits.dtype))
        loss = functional.cross_entropy(logits, targets_BT.flatten(), ignore_index=-100)
        return loss + balance * sum(load.balance for load in loads) if loads else loss

    capabilities = property(capabilities.of_lm)

    def state_floats(self, T, B=1):
        """Floating-point numbers in the state after T tokens, a complex one counted as two. Computes nothing."""
        return self._after(T, B, lambda S: sum(x.numel() * (1 + x.is_complex()) for x in leaves(S) if floating(x)))

    def state_bytes(self, T, B=1):
        """Bytes of the state after T tokens, counters included, at the dtype of the weights. Computes nothing."""
        return self._after(T, B, size)

    def _after(self, T, B, measure):
        """What a state measures after T tokens: each token adds as much as the second one, if anything."""
        positive(T=T)
        first = measure(self._meta_state(1, B))
        return first if T == 1 else first + (int(T) - 1) * (measure(self._meta_state(2, B)) - first)

    def _meta_state(self, T, B):
        named = [*self.named_parameters(), *self.named_buffers()]
        weights = {name: torch.empty_like(x, device="meta") for name, x in named}
        ids = torch.zeros(B, T, dtype=torch.int64, device="meta")
        with torch.no_grad():
            return torch.func.functional_call(self, weights, (ids,))[1]


def count(lm):
    """Parameters of a model: Count(total, active)."""
    total = sum(p.numel() for p in lm.parameters())
    return Count(total, total - sum(m.idle() for m in lm.modules() if isinstance(m, MoE)))


@torch.no_grad()
def generate(
    lm, prompt_BT, n, *, temperature=1.0, top_k=None, top_p=None, eos=None, lengths_B=None, generator=None, S=None
):  # fmt: skip
    """Continue each row by n tokens: (ids_BT of n new tokens, S). The prefix is read once.

    temperature, top_k, top_p, generator: see `sample`. Each new token is one call of the model with the state, so
    memory is the state's: constant for recurrent layers, a ring for windowed ones. lengths_B: tokens of each prompt
    that are real, at least 1; the new ones follow the last of these. eos: a token that ends its row: eos fills the
    rest of it, and rows do not wait for each other. S has read all but each row's last new token.
    One row in float32 on a CPU is written by a `postx.models.writer.Writer`, what a GPU computes by a
    `postx.models.graph.Graph`; where their `refused` says why not, by calls of the model.
    Raises ValueError for an n below 0, a prompt without a token, an eos that is no token, and as `sample` does.
    """
    check(prompt_BT=prompt_BT)
    B, T = prompt_BT.shape
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n: expected a whole number of tokens from 0 up, got {n!r}")
    if T == 0:
        raise ValueError("prompt_BT: expected at least one token to go on from, got 0")
    if eos is not None and (isinstance(eos, bool) or not isinstance(eos, int) or eos < 0):
        raise ValueError(f"eos: expected the id of a token or None, got {eos!r}")
    check_sampling(temperature, top_k, top_p)
    check_lengths(lengths_B, B, T)
    if lengths_B is not None and B and int(lengths_B.min()) < 1:
        raise ValueError(f"lengths_B: expected at least one token of every prompt, got {lengths_B.tolist()}")
    logits, S = lm(prompt_BT, S) if lengths_B is None else lm(prompt_BT, S, lengths_B=lengths_B)
    if eos is not None and eos >= logits.shape[-1]:
        raise ValueError(f"eos: expected a token below Y={logits.shape[-1]}, got {eos}")
    row_B = torch.arange(B, device=logits.device)
    logits_BY = logits[:, -1] if lengths_B is None else logits[row_B, lengths_B.to(row_B) - 1]
    ids_BT, done_B = prompt_BT.new_full((B, n), 0 if eos is None else eos), None
    fast = faster(lm, S, B, n - 1, eos)
    for i in range(n):
        ids_B = sample(logits_BY, temperature, top_k, generator, top_p=top_p)
        if done_B is not None:
            ids_B = ids_B.masked_fill(done_B, eos)
        ids_BT[:, i] = ids_B
        if i == n - 1:
            break
        if eos is not None and bool((ids_B == eos).any()):
            done_B = ids_B == eos
            if bool(done_B.all()):
                break
        ended = {} if done_B is None else {"lengths_B": (~done_B).long()}  # the state of an ended row stands still
        with trusted():  # the model's own state: what fits the prompt fits a token
            if fast is not None:  # no row of its batch has ended
                logits_BY = fast(ids_B)
            else:
                logits, S = lm(ids_B[:, None], S, inplace=True, **ended)
                logits_BY = logits[:, -1]
    return ids_BT, S if fast is None else fast.state()


def faster(lm, S, B, n, eos=None):
    """What reads n tokens behind a state S faster than calls of the model do: fast(ids_B) -> logits_BY, or None.

    `fast.state()` is the state after the last of them. A `postx.models.writer.Writer` or a `postx.models.graph.Graph`.
    """
    if type(lm) is not LM or not len(lm.blocks):
        return None
    if writer.refused(lm, B, n, S) is None:
        return writer.Writer(lm, S)
    return graph.Graph(lm, S, n) if B and graph.refused(lm, n, eos, B) is None else None


GREEDY = 1e-12  # a temperature below it leaves nothing to the others, and would overflow the division


def sample(logits_BY, temperature=1.0, top_k=None, generator=None, *, top_p=None):
    """Draw one token a row from softmax(logits / temperature); temperature 0 takes the likeliest.

    top_k keeps only the k likeliest (all, where Y is smaller), top_p then the fewest likeliest whose probabilities
    reach p (nucleus sampling; Holtzman et al. 2020), at least one. Raises ValueError for arguments out of range, and
    for logits that leave nothing to draw: a NaN, an infinity, or a row of -infinity alone.
    """
    check(logits_BY=logits_BY)
    check_sampling(temperature, top_k, top_p)
    best_B = logits_BY.amax(-1)  # NaN where one is in the row
    if not bool(best_B.isfinite().all()):
        bad = int((~best_B.isfinite()).sum())
        raise ValueError(f"logits_BY: {bad} of {len(best_B)} rows are not finite; the network's answer is broken")
    if temperature < GREEDY:
        return logits_BY.argmax(-1)
    logits = logits_BY.to(state_dtype(logits_BY.dtype)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], -torch.inf)
    p = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, place = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have together
        p = torch.zeros_like(p).scatter(-1, place, torch.where(before < top_p, ordered, 0))
    if len(p) == 0:  # multinomial takes no batch without a row
        return logits_BY.new_zeros(0, dtype=torch.int64)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def check_sampling(temperature, top_k=None, top_p=None):
    """Raise ValueError for what `sample` does not take."""
    if temperature < 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature: expected a finite number >= 0, got {temperature}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k: expected None or at least 1 token, got {top_k!r}")
    if top_p is not None and (isinstance(top_p, bool) or not 0 < top_p <= 1):
        raise ValueError(f"top_p: expected None or a probability above 0, at most 1, got {top_p!r}")
