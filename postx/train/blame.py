"""Which layer broke: run a step again with eyes on every module, and name the first that is not finite."""

import functools

import torch


class NotFinite(FloatingPointError):
    """A loss or gradient that is not finite, with the `step`, the `layer` (a module's path) and `what` of it."""

    def __init__(self, step, layer, what):
        self.step, self.layer, self.what = step, layer, what
        super().__init__(
            f"step {step}: {what} of {layer!r} is not finite; the weights are those before this step"
        )


def blame(model, loss):
    """Call loss() and its backward on the model; return (layer, what) of the first thing that is not finite.

    Going forward it is the innermost module whose output breaks (of a tuple the first part: states may hold an
    infinity by design). Going backward it is the innermost module whose input's gradient or whose own parameter's
    gradient breaks. Gradients are cleared afterwards.
    """
    found, readers, handles = [], {}, []

    def broken(x):
        return isinstance(x, torch.Tensor) and x.is_floating_point() and not bool(x.isfinite().all())

    def watch_input(name):
        def hook(_, args, more):
            for x in (*args, *more.values()):
                if isinstance(x, torch.Tensor) and x.requires_grad:
                    if id(x) not in readers:
                        x.register_hook(functools.partial(note, id(x)))
                    readers[id(x)] = (
                        name,
                        x,
                    )  # the last to take it is the innermost; x is kept, so its id is its own

        return hook

    def note(key, gradient):
        if broken(gradient):
            found.append((readers[key][0], "the gradient of the input"))

    def watch_output(name):
        def hook(_, args, result):
            if broken(result[0] if isinstance(result, tuple) else result):
                found.append((name, "the output"))

        return hook

    def watch_parameter(layer, name):
        def hook(gradient):
            if broken(gradient):
                found.append((layer, f"the gradient of {name!r}"))

        return hook

    for path, module in model.named_modules():
        path = path or type(module).__name__
        handles.append(module.register_forward_pre_hook(watch_input(path), with_kwargs=True))
        handles.append(module.register_forward_hook(watch_output(path)))
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad:
                handles.append(p.register_hook(watch_parameter(path, name)))
    try:
        value = loss()
        if not found and broken(value.detach()):
            found.append(("loss", "the value"))
        if not found:
            value.backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return found[0] if found else ("unknown: run again it is finite", "something")
