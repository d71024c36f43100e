"""What stands between the mixers of a language model: norm, gated MLP, mixture of experts. All on [B, T, D]."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from postx.parts.shift import token_shift
from postx.shapes import check, check_lengths, state_dtype


def gelu_tanh(x):
    """GELU by its tanh approximation."""
    return functional.gelu(x, approximate="tanh")


def relu2(x):
    """The square of relu."""
    return functional.relu(x).square()


# Functions with names, as a module that holds one is pickled by its name.
ACTIVATIONS = {"silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": gelu_tanh, "relu2": relu2}


class RMSNorm(nn.Module):
    """Divide each token by its root mean square, then scale each channel: x / sqrt(mean x^2 + eps) * weight.

    Computed in at least float32, returned in x's dtype. Zhang and Sennrich 2019.
    """

    def __init__(self, D, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(D)), eps

    def forward(self, x):
        if not x.is_floating_point():
            raise ValueError(f"x: expected floating point numbers, got {x.dtype}")
        wide = state_dtype(x.dtype)
        y = functional.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)
        return y.to(x.dtype)


class MLP(nn.Module):
    """The dense MLP: out(act(gate(x)) * up(x)), or out(act(up(x))) with gated=False. x_BTD -> y_BTD.

    activation "silu" is SwiGLU (Shazeer 2020), "gelu" or "gelu_tanh" GeGLU, "relu2" ungated Nemotron's and
    RWKV's. F is 8/3 D rounded up to a multiple of 8 by default (4 D ungated), which costs 8 D^2 weights.
    sub_norm: the eps of an RMS norm before `out` (BitNet b1.58).
    Raises ValueError for an activation that is not in the table.
    """

    def __init__(self, D, F=None, *, activation="silu", gated=True, bias=False, sub_norm=None):
        super().__init__()
        F = F or (-(-8 * D // 24) * 8 if gated else 4 * D)
        self.act = pick_activation(activation)
        self.gate = nn.Linear(D, F, bias=bias) if gated else None
        self.norm = RMSNorm(F, sub_norm) if sub_norm is not None else None
        self.up, self.out = nn.Linear(D, F, bias=bias), nn.Linear(F, D, bias=bias)

    def forward(self, x_BTD, beside=None):
        """y_BTD; beside: what is added to what `gate` and `up` give, side by side [B, T, 2 F]."""
        up, gate = self.up(x_BTD), None if self.gate is None else self.gate(x_BTD)
        if beside is not None:
            gate, up = (x + more for x, more in zip((gate, up), beside.chunk(2, -1), strict=True))
        hidden = self.act(up) if gate is None else self.act(gate) * up
        return self.out(hidden if self.norm is None else self.norm(hidden))


class ChannelMix(nn.Module):
    """RWKV's MLP: out(relu(up(blend))^2), where the blend is of the token and the one before it.

    (x_BTD, S=None) -> (y_BTD, S), S = (last token,). F is 4 D by default. Peng et al. 2025 (RWKV-7), without a gate;
    gate=True multiplies by sigmoid(gate(another blend)) (RWKV-4).
    """

    def __init__(self, D, F=None, *, gate=False):
        super().__init__()
        F = F or 4 * D
        self.mix_gate_D = nn.Parameter(torch.full((D,), 0.5)) if gate else None
        self.gate = nn.Linear(D, D, bias=False) if gate else None
        self.mix_D = nn.Parameter(torch.full((D,), 0.5))
        self.up, self.out = nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x_BTD, S=None, *, form=None, **side):
        previous, last_BD = token_shift(x_BTD, S[0] if S else None, **side)
        seen = torch.lerp(x_BTD, previous, self.mix_D)
        y = self.out(functional.relu(self.up(seen)).square())
        if self.gate is not None:
            y = y * self.gate(torch.lerp(x_BTD, previous, self.mix_gate_D)).sigmoid()
        return y, (last_BD,)


def pick_activation(name):
    """The function of that name. Raises ValueError listing the names there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return ACTIVATIONS[name]


class Load(NamedTuple):
    """How a mixture of experts was used on one batch: nothing of it is kept in the module."""

    tokens_E: torch.Tensor  # tokens that chose each expert; they sum to k * tokens
    probability_E: torch.Tensor  # the router's mean probability of each expert
    balance: torch.Tensor  # E sum_e f_e p_e: 1 when even, E when all goes to one expert


class MoE(nn.Module):
    """Each token is sent to the k of E small MLPs that a linear router scores highest. x_BTD -> (y_BTD, Load).

        p = softmax(router(x))        y = sum over the k largest p_e: w_e MLP_e(x)        (+ MLP_shared(x))

    w is p itself, or p divided by the k's sum with renormalise=True (Mixtral). `shared` > 0 adds an MLP of that
    width which every token passes (DeepSeek 2024), times sigmoid(a linear function of x) with shared_gate=True (Qwen).
    DeepSeek-V3's router (2024, sec. 2.1.2): sigmoid=True scores each expert by itself; `bias_E`, a buffer that no
    gradient reaches, is added where experts are chosen and not where they are weighed; groups=(n, m) chooses only from
    the m of n groups of experts whose two best are best; w is multiplied by `scale`. No token is dropped. All experts
    are computed on all tokens and weighted, zero where not chosen: shapes then do not depend on the data, so that a
    step can be captured in a CUDA graph. It costs E / k times the arithmetic of a sparse kernel; `active` counts what
    a sparse one reads.

    The balance loss is Switch's (Fedus et al. 2021, eq. 4) with k choices: f_e counts choices, divided by k tokens.
    Raises ValueError unless 1 <= k <= E.
    """

    def __init__(
        self, D, F=None, *, E=8, k=2, shared=0, renormalise=True, activation="silu", gated=True, sigmoid=False,
        groups=None, scale=1.0, shared_gate=False,
    ):  # fmt: skip
        super().__init__()
        if not 1 <= k <= E:
            raise ValueError(f"k: expected 1 to E={E} experts a token, got {k}")
        if groups is not None and (E % groups[0] or not 1 <= groups[1] <= groups[0]):
            raise ValueError(f"groups: expected (n, m) with n a divisor of E={E} and m of them, got {groups}")
        F = F or -(-8 * D // 24) * 8
        self.groups, self.scale = groups, scale
        self.register_buffer("bias_E", torch.zeros(E) if sigmoid else None)
        self.k, self.renormalise, self.act = k, renormalise, pick_activation(activation)
        self.router = nn.Linear(D, E, bias=False)
        self.up_EDF, self.out_EFD = nn.Parameter(torch.empty(E, D, F)), nn.Parameter(torch.empty(E, F, D))
        self.gate_EDF = nn.Parameter(torch.empty(E, D, F)) if gated else None
        self.shared = MLP(D, shared, activation=activation, gated=gated) if shared else None
        self.shared_gate = nn.Linear(D, 1, bias=False) if shared_gate else None
        for weight in (self.up_EDF, self.out_EFD, self.gate_EDF):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)

    def forward(self, x_BTD, lengths_B=None):
        """y, and the load of the real tokens: those past a row's length are computed, and not counted."""
        B, T = x_BTD.shape[:2]
        check({"D": self.router.in_features}, x_BTD=x_BTD)
        check_lengths(lengths_B, B, T)
        E = self.router.out_features
        scores = self.router(x_BTD).to(state_dtype(x_BTD.dtype))
        p = scores.softmax(-1) if self.bias_E is None else scores.sigmoid()
        chosen = self._choose(p).topk(self.k, -1).indices
        top = p.gather(-1, chosen)
        if self.renormalise:
            top = top / top.sum(-1, keepdim=True)
        top = top * self.scale
        weight_BTE = torch.zeros_like(p).scatter(-1, chosen, top).to(x_BTD.dtype)
        picked = torch.zeros_like(p).scatter(-1, chosen, 1.0)  # [B, T, E]; `one_hot` asks the host on a CPU
        up = torch.einsum("btd,edf->btef", x_BTD, self.up_EDF)
        if self.gate_EDF is None:
            hidden = self.act(up)
        else:
            hidden = self.act(torch.einsum("btd,edf->btef", x_BTD, self.gate_EDF)) * up
        y = torch.einsum("btef,efd->btd", hidden * weight_BTE[..., None], self.out_EFD)
        if lengths_B is None:
            tokens_E, probability_E = picked.sum((0, 1)), p.sum((0, 1)) / max(1, B * T)
            share_E = tokens_E / (self.k * max(1, B * T))
        else:
            real_BT1 = (torch.arange(T, device=x_BTD.device) < lengths_B[:, None])[..., None]
            count = real_BT1.sum().clamp(min=1)
            tokens_E = torch.where(real_BT1, picked, 0).sum((0, 1))
            probability_E = torch.where(real_BT1, p, 0).sum((0, 1)) / count
            share_E = tokens_E / (self.k * count)
        if self.bias_E is not None:  # scores of one expert each: their share is what the balance asks
            probability_E = probability_E / probability_E.sum().clamp(min=1e-20)
        load = Load(tokens_E, probability_E, E * (share_E * probability_E).sum())
        if self.shared is None:
            return y, load
        own = self.shared(x_BTD)
        return y + (own if self.shared_gate is None else own * self.shared_gate(x_BTD).sigmoid()), load

    def _choose(self, p):
        """What the experts are ranked by: p itself, with the bias, and minus infinity outside the best groups."""
        if self.bias_E is not None:
            p = p + self.bias_E
        if self.groups is None:
            return p
        n, m = self.groups
        grouped = p.unflatten(-1, (n, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1).topk(m, -1).indices
        out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
        return grouped.masked_fill(out[..., None], -torch.inf).flatten(-2)

    def idle(self):
        """Weights that one token does not read: those of the E - k experts that it does not choose."""
        experts = [w for w in (self.up_EDF, self.out_EFD, self.gate_EDF) if w is not None]
        return sum(w[0].numel() for w in experts) * (self.router.out_features - self.k)


class Packed(nn.Module):
    """A linear layer that keeps its weight as a quantizer stores it: x [..., I] -> [..., O].

    One row of x in float32 is a product with the codes (`Quantized.product`); more rows are one with the weight that
    they stand for, which is made anew each time. On a CPU, not for training. Raises ValueError for a q that has no
    kernel.
    """

    def __init__(self, q, bias=None):
        super().__init__()
        self.q, self.bias, self.product = q, bias, q.product()
        self.out_features, self.in_features = q.shape

    @property
    def weight(self):
        return self.q.dequantize()

    def forward(self, x):
        one = x.numel() == self.in_features and x.dtype == torch.float32
        y = self.product(x.flatten()).view(*x.shape[:-1], -1) if one else x @ self.weight.to(x.dtype).T
        return y if self.bias is None else y + self.bias
