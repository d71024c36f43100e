"""Three ways to count work: torch counts contractions, numbers count what is done to them, a mode all of a call."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Counting:
    """A number that counts every operation done to it: the explicit operation count."""

    ops = 0

    def __init__(self, value):
        self.value = float(value)

    def _binary(self, other, f):
        Counting.ops += 1
        return Counting(f(self.value, other.value if isinstance(other, Counting) else other))

    def __add__(self, other):
        return self._binary(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._binary(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._binary(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._binary(other, lambda a, b: a / b)

    def exp(self):
        Counting.ops += 1
        return Counting(math.exp(self.value))

    def maximum(self, other):
        return self._binary(other, max)


def operations(run):
    Counting.ops = 0
    run()
    return Counting.ops


def numbers(n, value=0.5):
    return [Counting(value) for _ in range(n)]


# What one number of the output costs, by the conventions of `postx.cost`. What is not here moves or compares numbers
# and is free: views, copies, masks, maxima over a row.
ELEMENTWISE = dict.fromkeys(
    ("add", "sub", "rsub", "mul", "div", "neg", "exp", "expm1", "sqrt", "tanh", "maximum", "relu", "clamp"), 1
) | {"sigmoid": 3}


class Work(TorchDispatchMode):
    """`contractions` by torch's own counter, and with them `all`: every operation on a floating-point number."""

    def __enter__(self):
        self.rest, self.counter = 0.0, FlopCounterMode(display=False)
        self.counter.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.counter.__exit__(*error)
        self.contractions = self.counter.get_total_flops()
        self.all = self.contractions + self.rest

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), str(function).split(".")[1].rstrip("_")
        if isinstance(result, torch.Tensor) and (result.is_floating_point() or result.is_complex()):
            self.rest += self.one(name, result, [x for x in args if isinstance(x, torch.Tensor)])
        return result

    @staticmethod
    def one(name, result, inputs):
        wide = sum(x.is_complex() for x in inputs)
        if name == "mul" and wide:  # both complex: 4 products, 2 additions; one real: 2 products
            return result.numel() * (6 if wide == 2 else 2)
        if name in ("_fft_r2c", "_fft_c2r"):
            real = inputs[0] if name == "_fft_r2c" else result
            n = real.shape[1]
            return real.numel() * 2.5 * math.log2(n)
        if name == "sum":
            return (inputs[0].numel() - result.numel()) * (1 + wide)
        return result.numel() * ELEMENTWISE.get(name, 0) * (1 + min(wide, 1))
