"""The corrector's record: what the script writes, and what stands in the file."""

import itertools
import statistics

import torch

from experiments import diffusion_corrector as corrector
from experiments.runner import results
from postx.diffusion import masked
from postx.diffusion.remasking import Cap

RECORD = {(r["run"]["sampler"], r["run"]["calls"], r["run"]["seed"]): r
          for r in results.read(results.RESULTS / "diffusion_corrector.jsonl")}  # fmt: skip


def sure(ids_BT):
    """Says letter 7 for a place after a mask or at the start, else the letter before plus one."""
    before = torch.cat([torch.full_like(ids_BT[:, :1], 6), ids_BT[:, :-1]], 1)
    return 50.0 * torch.nn.functional.one_hot(torch.where(before == 256, 7, before + 1).clamp(max=255), 256)


def test_blocks_are_written_from_the_left_each_with_its_share_of_the_calls():
    seen = []

    def net(ids_BT):
        seen.append((ids_BT != 256).sum(1).max().item())
        assert ids_BT.shape[1] == 12  # what is to come is there, as masks
        return sure(ids_BT)

    ids, spent = corrector.write(net, rows=3, long=12, calls=12, block=4, corrector=Cap(0.3))
    assert ids.shape == (3, 12)
    assert (ids < 256).all()
    assert seen == sorted(seen) or max(seen) < 12
    assert 3 <= spent <= 12
    ids, spent = corrector.write(sure, rows=2, long=12, calls=12, block=1)
    assert ids.tolist() == [list(range(7, 19))] * 2
    assert spent == 12


def test_the_whole_text_is_the_package_s_sampler():
    ids, _ = corrector.write(sure, rows=4, long=10, calls=5, corrector=Cap(0.2), seed=3)
    given = torch.full((4, 10), -1)
    rng = torch.Generator().manual_seed(3)
    want = masked.ancestral(sure, given, 256, steps=5, corrector=Cap(0.2), generator=rng).ids_BT
    assert torch.equal(ids, want)


def test_the_record_is_whole():
    wanted = set(itertools.product(corrector.SAMPLERS, corrector.CALLS, corrector.SEEDS))
    assert set(RECORD) == wanted | {("unseen text", 0, 0)}
    for (_, calls, _), r in RECORD.items():
        assert (r["rows"], r["T"]) == (corrector.ROWS, corrector.LONG)
        assert r["metrics"]["nfe"] <= calls + 1e-9


def interval(three):
    """Mean and half the 95% interval of three values, by Student's t with two degrees of freedom."""
    assert len(three) == 3
    return statistics.fmean(three), 4.303 * statistics.stdev(three) / 3**0.5


def test_a_step_that_no_byte_picked_takes_no_call():
    for calls in corrector.CALLS:
        want = calls * (1 - (1 - 1 / calls) ** corrector.LONG)
        found = [RECORD["no corrector", calls, seed]["metrics"]["nfe"] for seed in corrector.SEEDS]
        assert abs(statistics.fmean(found) - want) < 1


def test_the_record_says_what_the_page_says():
    bits = {at: r["metrics"]["bits"] for at, r in RECORD.items()}
    gains = {}
    for whole, again in (("no corrector", "corrector"), ("blocks of 32", "blocks of 32, corrector")):
        gains[whole] = [[bits[again, calls, s] - bits[whole, calls, s] for s in corrector.SEEDS]
                        for calls in corrector.CALLS]  # fmt: skip
    means = {name: [statistics.fmean(each) for each in found] for name, found in gains.items()}
    assert [round(-mean, 1) for mean in means["no corrector"]] == [0.3, 0.3, 0.4]
    assert [mean < 0 for mean in means["blocks of 32"]] == [True, False, False]
    assert max(map(max, gains["no corrector"])) > 0.3, "a seed in which it is worse by as much"
    middle, half = interval([statistics.fmean(each) for each in zip(*gains["no corrector"], strict=True)])
    assert (round(middle, 2), round(half, 2)) == (-0.32, 0.74), "numbers of steps are no seeds: three, not nine"
    middle, half = interval([bits["no corrector", 160, s] - bits["no corrector", 80, s] for s in corrector.SEEDS])
    assert 0 < middle < half, "more steps look worse, within the spread of seeds"
    assert min(bits.values()) == bits["unseen text", 0, 0] < min(x for at, x in bits.items() if at[1]) - 1
