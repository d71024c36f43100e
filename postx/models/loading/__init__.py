"""Published checkpoints in the modules of this package: folders of safetensors, GGUF files, the hub.

    names.toml      which tensor goes where: one entry for each model_type
    config.py       config.json as it is read; configs.py: what it says, as arguments of `LM`, for each model_type
    transforms.py   what is done to a tensor on its way
    fill.py         puts it together, and lists what does not fit
    files.py, from_gguf.py, hub.py     where the bytes come from

`postx.models.checkpoints.load` is the door.
"""

import importlib


def extra(name):
    """A package that only real models need. Raises ModuleNotFoundError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"{name} is not installed: pip install 'postx[real]'", name=name) from error
