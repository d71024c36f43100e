"""What the planner knows from elsewhere, read from facts.toml: devices, published lengths, quality, speed, servers."""

import tomllib
from functools import cache
from pathlib import Path

from postx.cost import Device

FILE = Path(__file__).with_name("facts.toml")
SHARE = 0.9  # of a device's memory that is planned with; the rest is for activations and the system (vLLM's default)
NONE, UNKNOWN = "not published", "not checked"  # no figure found by the date in facts.toml; nobody looked


@cache
def table():
    """facts.toml as it stands."""
    return tomllib.loads(FILE.read_text(encoding="utf8"))


def devices():
    """{name: Device}, from a phone to eight GPUs."""
    return {row["name"]: Device(row["name"], row["flops"], row["bandwidth"], row["memory"], row["source"])
            for row in table()["device"]}  # fmt: skip


def device(name):
    """The row of the device whose name begins so, in capitals or not. Raises ValueError with the names there are.

    A name that is one's whole wins; otherwise the first that begins so: "H100" is one card, "8 x H100" are eight.
    """
    rows = table()["device"]
    wanted = " ".join(name.lower().replace("×", "x").split())
    for row in sorted(rows, key=lambda row: row["name"].lower() != wanted):
        if row["name"].lower().startswith(wanted) and wanted:
            return row
    raise ValueError(f"device {name!r} is not here; there are {'; '.join(row['name'] for row in rows)}")


def context(model):
    """The longest text that the publisher names, in tokens, with its source and date; None where none was found."""
    return next((row for row in table()["context"] if row["model"] == model), None)


def quality(model, kind=None):
    """Published figures of quality, each with its source and date."""
    return [row for row in table()["quality"] if row["model"] == model and kind in (None, row["kind"])]


def measured(model, device):
    """Speeds that were published for this model on this device."""
    return [row for row in table()["measured"] if (row["model"], row["device"]) == (model, device)]


def served(model):
    """{server: the name under which it lists the architecture}."""
    names = next((row["names"] for row in table()["served"] if model in row["models"]), None)
    return {server["name"]: names[i] if names else "not checked" for i, server in enumerate(table()["server"])}


def figure(row):
    """A figure of quality in words: "RULER at 64k 87.5"."""
    return f"{row['test']}: {row['text'] if 'text' in row else row['value']}"
