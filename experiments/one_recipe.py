"""One recipe for every kept model: text seen once, equal parameters, a swept rate, three seeds.

    python -m experiments.runner.corpus FILE.npz packages 33554432
    python -m experiments.one_recipe --out FOLDER/one_recipe.jsonl --text FILE.npz [--only NAME ...] [--small]
    python -m experiments.one_recipe --out FOLDER/again.jsonl --text FILE.npz --again best \\
        --have experiments/results/one_recipe.jsonl [--only NAME ...]

Eight layers, each a mixer and a gated MLP whose width makes the parameters equal to 5%; 32 MB of other people's
Python (`postx.packages`), every byte asked for once, in windows of 2,048 that one seed puts into the same order for
every model; AdamW, one schedule, no dropout: what is read once cannot be learned by heart. The rate is chosen on an
eighth of the text, its grid widened until the best is not at an end; at that rate every model is trained on the whole
of it from three seeds. `ternary` trains the blocks' linear layers as trits, and `attention` is its twin. `masked` is a
denoiser of the same size, judged by its bound, which has the same unit and is no likelihood: it is in no ranking.
`whole_machine` is the hybrid with eight experts in place of each MLP, of which a token reads two: what it reads is as
much as the others have, and what it has is more, at most `MOST`. It is trained with the balance loss of `LM.loss`, so
its loss is not comparable, its bits a byte are; how its routers chose on the validation text stands in its metrics.
`attention_conv` and `hybrid_conv` have a short convolution over queries, keys and values of their attention layers, as
SSD and Gated DeltaNet have one: the control for what that link to the bytes before is worth here.

The weights of each name's best seed are kept beside the lines, in bf16, as soon as its run ends. Where the lines are
there and the weights are not, --again trains one recorded run of each name, "best" or a seed, and nothing else.
"""

import copy
import datetime

import torch

from experiments import diffusion
from experiments.runner import corpus
from experiments.runner.equal import config, spread
from experiments.runner.results import read
from experiments.runner.sweep import MODEL, arguments, best, build, key, sweep, tune
from postx import text as texts
from postx.models import checkpoints
from postx.models.denoiser import Denoiser
from postx.models.lm import count

DEPTH, D, T, TARGET = 8, 192, 2048, 2_400_000
MOST = 4_500_000  # weights of the model with experts; TARGET is what one token reads of them
CONV = dict.fromkeys(("attention_conv", "hybrid_conv"), {"A": {"H": 4, "conv_size": 4}})  # instead of the table's
TABLE = {"A": {"H": 4}, "S": {"K": 64}, "G": {"conv_size": 4}, "7": {"H": 4}, "E": {"E": 8, "k": 2}}
PATTERNS = {
    "attention": "A" * DEPTH, "hybrid": spread("S", "A", DEPTH, 2), "ssd": "S" * DEPTH, "gated_deltanet": "G" * DEPTH,
    "rwkv7": "7" * DEPTH, "ternary": "A" * DEPTH, "whole_machine": spread("S", "A", DEPTH, 2),
    "attention_conv": "A" * DEPTH, "hybrid_conv": spread("S", "A", DEPTH, 2),
}  # fmt: skip
RECIPE = {"B": 16, "T": T, "floor": 0.1, "decay": 0.1, "precision": "bf16"}
RATES, SEEDS, SHARE = (1e-3, 2e-3, 4e-3), (0, 1, 2), 8  # rates are tried on a share of the text
PASSES = 4  # evaluations of the bound of the denoiser


def runs(small=False):
    """{name: its run}, but for steps, learning rate and seed."""
    width, target, more = (32, 40_000, {"B": 4, "T": 64}) if small else (D, TARGET, {})
    tiny = {"S": {"K": 8, "V": 16}, "G": {"H": 2, "conv_size": 4}, "7": {"H": 2, "rank": 4}}
    table = TABLE | tiny if small else TABLE
    found = {}
    for name, letters in PATTERNS.items():
        if small:
            letters = "SA" if {*letters} == {*"SA"} else letters[:2]
        mlp = "E" if name == "whole_machine" else "F"
        options = table | CONV.get(name, {})
        found[name] = {**config(letters, width, 256, target, options, mlp), "name": name, **RECIPE, **more}
    found["ternary"]["trits"] = True
    like = found["attention"]
    shape = {"D": width, "L": len(like["pattern"]), "Y": 256, "H": 4, "F": like["options"]["F"]["F"]}
    found["masked"] = {"name": "masked", "network": shape, "objective": "nelbo_by_count", **RECIPE, **more}
    found["masked"]["D"] = width  # what the runner prints
    return found


def make(run):
    """The run's model, drawn from its seed."""
    if "network" not in run:
        return build(run)
    torch.manual_seed(run["seed"])
    return diffusion.Trained(Denoiser(**run["network"]), run["objective"])


def once(text, run):
    """(ids_NBT, targets_NBT): windows of the training text in the order of the run's seed, no byte asked for twice.

    Raises ValueError where the text is too short for the run's steps.
    """
    B, T_, steps = run["B"], run["T"], run["steps"]
    have, need = (len(text.train) - 1) // T_, B * steps
    if have < need:
        raise ValueError(f"steps: {steps} of {B} windows of {T_} bytes are {need}, and the text has {have}")
    order = torch.randperm(have, generator=torch.Generator().manual_seed(run["seed"]))[:need]
    data = torch.from_numpy(text.train)
    ids, targets = (data[at : at + have * T_].view(have, T_)[order].view(steps, B, T_).int() for at in (0, 1))
    return ids, targets


def steps(text, run, share=1):
    """How many steps read the text, or a share of it, once."""
    return (len(text.train) - 1) // share // (run["B"] * run["T"])


def study(run, text):
    """The rate on a share of the text, then every seed on the whole of it."""
    tried = yield from tune(run | {"steps": steps(text, run, SHARE), "seed": 0, "share": SHARE}, RATES, "score")
    yield [run | {"steps": steps(text, run), "seed": seed, "lr": tried["run"]["lr"]} for seed in SEEDS]


def again(run, text, records, seed):
    """One recorded run of the whole text once more, for its weights: that seed, or the "best" one.

    Raises ValueError where the records have no such run of this recipe and text.
    """
    whole = [r for r in records if r["run"]["name"] == run["name"] and "share" not in r["run"] and r["metrics"]]
    mine = [r for r in whole if seed == "best" or str(r["run"]["seed"]) == seed]
    if not mine:
        raise ValueError(f"again: {run['name']} has no finished run of seed {seed!r} in the records")
    found = best(mine, "score")["run"]
    wanted = run | {"steps": steps(text, run), "seed": found["seed"], "lr": found["lr"]}
    if wanted != found:
        raise ValueError(f"again: {run['name']} was recorded with another recipe or text: {differing(wanted, found)}")
    yield [wanted]


def differing(one, other):
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


@torch.no_grad()
def load(lm, text, T, rows=16):
    """What the routers of a model choose on the validation text, one dict for each place with experts, in order.

    share: of the choices, by expert; probability: the router's mean; balance: E sum_e share_e probability_e.
    """
    device, sums, tokens = next(lm.parameters()).device, None, 0
    for ids, targets in text.windows("validation", rows, T):
        lengths_B = (targets != -100).sum(-1)  # the last window is longer than the text
        loads, real = lm(ids.to(device), lengths_B=lengths_B.to(device), with_load=True)[2], int(lengths_B.sum())
        here = torch.stack([torch.stack([x.tokens_E, x.probability_E * real]) for x in loads]).double()
        sums, tokens = here if sums is None else sums + here, tokens + real
    choices, p = sums[:, 0] / sums[:, 0].sum(-1, keepdim=True), sums[:, 1] / tokens
    return [{"share": share.tolist(), "probability": mean.tolist(), "balance": len(share) * float(share @ mean)}
            for share, mean in zip(choices.cpu(), p.cpu(), strict=True)]  # fmt: skip


class Judge:
    """Scores a trained model, and keeps the weights of each name's best whole run."""

    def __init__(self, folder, text):
        self.folder, self.text = folder, text
        self.some = texts.Text(train=text.train[:0], **texts.cut_slice(text, long=min(8192, len(text.test) // 32)),
                               source=f"a slice of {text.source}")  # fmt: skip

    def bits(self, lm, run, text):
        """Bits a byte of validation and test; of a denoiser, its bound."""
        if "network" not in run:
            return {f"{split}_bits": corpus.bits(lm, text, split, run["T"], 16) for split in ("validation", "test")}
        found = {}
        for split in ("validation", "test"):
            ids = diffusion.windows(getattr(text, split), run["T"])
            bound, error = diffusion.bound(lm.net, ids, run["objective"], PASSES, rows=16)
            found |= {f"{split}_bits": bound, f"{split}_error": error}
        return found

    def score(self, lm, run):
        """The rates are told apart by a slice of validation; whole runs are judged on all of it, in bf16 weights."""
        if "share" in run:
            found = self.bits(lm, run, self.some)
            return found | {"score": -found["validation_bits"]}
        if not run.get("trits"):
            for x in lm.parameters():
                x.copy_(x.bfloat16())
        found = self.bits(lm, run, self.text)
        if run.get("mlp") == "E":
            found |= {"active": count(lm).active, "router": load(lm, self.text, run["T"])}
        self.keep(lm, run, found)
        return found | {"score": -found["validation_bits"]}

    def keep(self, lm, run, found):
        """Write the weights if no other seed of this name was better."""
        name = run["name"]
        before = checkpoints.record(name, self.folder) if name in checkpoints.kept(self.folder) else None
        if before and before["validation_bits"] <= found["validation_bits"]:
            return
        net, built = lm, {part: run[part] for part in MODEL if part in run}
        if "network" in run:
            net, built = lm.net, {"network": "Denoiser", **run["network"]}
        about = {
            "parameters": sum(p.numel() for p in net.parameters()), **found, "run": run, "key": key(run),
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
            "device": str(next(net.parameters()).device),
        }  # fmt: skip
        # Trits are rounded from all the digits that training kept.
        dtype = torch.float32 if run.get("trits") else torch.bfloat16
        checkpoints.save(name, copy.deepcopy(net), built, about, self.folder, dtype)


def main():
    args = arguments(__doc__, text="", again="")
    text, about = corpus.load(args.text or None, 4_000 if args.small else None)
    found = runs(args.small)
    for run in found.values():
        run["task"] = about
        if torch.device(args.device).type == "cpu":
            run["precision"] = "float32"
    if args.small:
        most = 1 + 12 * SHARE * 4 * 64
        text = texts.Text(text.train[:most], text.validation, text.test, text.source)
    judge = Judge(args.out.parent, text)
    studies = {name: study(run, text) for name, run in found.items()}
    if args.again:
        records, args.have = read(*args.have), []
        studies = {name: again(run, text, records, args.again) for name, run in found.items()}
    sweep(studies, args=args, score=judge.score, build=make, data=lambda run: once(text, run))


if __name__ == "__main__":
    main()
