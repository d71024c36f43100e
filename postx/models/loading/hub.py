"""Checkpoints on the Hugging Face hub: "hf:owner/name@revision" is a folder that is fetched once, and then is there."""

import re

import torch

from postx.models.loading import extra, files

NEEDED = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja"]  # fmt: skip


def load(what, dtype=torch.float32, device="cpu"):
    """The model of that name on the hub, ready to run. Errors: as `fetched` and `files.folder`."""
    return files.folder(fetched(what), dtype, device)


def fetched(what):
    """The local folder of "hf:owner/name@revision", downloaded with a progress bar where it is not there yet.

    Raises ValueError for another form of name, ModuleNotFoundError without huggingface_hub, and ConnectionError that
    says what was asked of whom where the hub does not answer and the folder was never fetched.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", what)
    if not match:
        raise ValueError(f"what: expected hf:owner/name or hf:owner/name@revision, got {what!r}")
    name, revision = match.groups()
    client = extra("huggingface_hub")
    try:
        return client.snapshot_download(name, revision=revision, allow_patterns=NEEDED)
    except Exception as error:  # the client raises some ten kinds, which share no class of its own
        raise ConnectionError(
            f"{what}: the hub did not give {name}{f' at {revision}' if revision else ''} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            "without a network, name a folder or a .gguf file on this machine"
        ) from error
