"""The tensors of a model's state, which is tuples of tuples."""


def floating(x):
    """Whether x holds real or complex numbers rather than counters."""
    return x.is_floating_point() or x.is_complex()


def leaves(S):
    """The tensors of a state, in order."""
    return [x for part in S for x in leaves(part)] if isinstance(S, tuple) else [S]


def size(S):
    """Bytes of a state."""
    return sum(x.numel() * x.element_size() for x in leaves(S))
