"""Chapter 12: the code that stands on its page, its equations, its exercise solutions, and what the runs show."""

import itertools
import math

import numpy as np
import pytest
import torch
from page import Page
from scipy import integrate, stats

from experiments import quant_tables, real_models, real_tables
from experiments import ternary as ternary_runs
from experiments.quant_tables import MODELS
from experiments.runner import results
from postx.models import checkpoints, published
from postx.quant import (
    gptq,
    lattice,
    microscaling,
    nf4,
    output_error,
    rotate,
    second_moment,
    ternary,
    turbo,
    uniform,
)

PAGE = Page("sub_four_bit", torch=torch, np=np, math=math, uniform=uniform, lattice=lattice)
solution, page_function = PAGE.solution, PAGE.function
RUNS = quant_tables.Path(quant_tables.__file__).parent / "results" / "quant.jsonl"


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(O=6, I=16, T=200):
    x = gauss(T, I, seed=1) @ (gauss(I, I, seed=2) / 3 + torch.eye(I, dtype=torch.float64))
    return gauss(O, I), x, second_moment(x)


@pytest.mark.equation("eq-gptq-update")
@pytest.mark.parametrize("bits", [2, 4])
def test_the_update_is_the_best_repair(bits, residual):
    W, _, H = layer()
    feedback, gaussian_grid = page_function("feedback"), page_function("gaussian_grid")
    to_grid = gaussian_grid(W, bits)
    got, mine, w = feedback(W, H, to_grid)[0], torch.empty_like(W), W.clone()
    for i in range(16):  # from the definition: minimise (e, d) H (e, d)' over the later columns' change d
        mine[:, i] = to_grid(w[:, i])
        later = slice(i + 1, None)
        if i < 15:
            w[:, later] += (w[:, i] - mine[:, i])[:, None] * torch.linalg.solve(H[later, later], H[later, i])
    worst = float((got - mine).abs().max())
    assert worst < 1e-9
    assert output_error(W, got, layer()[1]) < output_error(
        W, torch.stack([to_grid(c) for c in W.T], 1), layer()[1]
    )
    residual(worst)


@pytest.mark.equation("eq-feedback-budget")
def test_the_error_left_is_the_sum_of_what_could_not_be_repaired(residual):
    W, _, H = layer()
    Q, e = page_function("feedback")(W, H, page_function("gaussian_grid")(W, 3))
    off = abs(float(torch.trace((W - Q) @ H @ (W - Q).T) / e.square().sum()) - 1)
    assert off < 1e-10
    residual(off)


@pytest.mark.equation("eq-feedback-gain")
def test_the_gain_that_is_promised(residual):
    W, _, H = layer(O=400)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    promised = float(H.diagonal().sum() / (1 / U.diagonal().square()).sum())

    def fine(w):
        return (w / 0.01).round() * 0.01

    near, fed = W - fine(W), W - page_function("feedback")(W, H, fine)[0]
    measured = float(torch.trace(near @ H @ near.T) / torch.trace(fed @ H @ fed.T))
    off = abs(measured / promised - 1)
    assert off < 0.05
    assert promised > 1.5
    residual(off)


@pytest.mark.equation("eq-awq")
def test_scaled_columns_and_divided_inputs(residual):
    W, x, _ = layer()
    strength = x.abs().mean(0)
    worst = 0.0
    for r in (0.0, 0.5, 1.0):
        s = strength**r
        worst = max(worst, float(((x / s) @ (W * s).T - x @ W.T).abs().max()))
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-turn")
@pytest.mark.parametrize("n", [16, 58, 192])
def test_a_turn_of_weights_and_inputs_changes_nothing(n, residual):
    W, x = gauss(5, n), gauss(7, n, seed=1)
    worst = float((rotate.spin(x, 4) @ rotate.spin(W, 4).T - x @ W.T).abs().max())
    assert worst < 1e-11
    residual(worst)


@pytest.mark.equation("eq-hadamard-kurtosis")
def test_kurtosis_over_all_signs(residual):
    w = gauss(8) ** 3
    H = rotate.hadamard(torch.eye(8, dtype=torch.float64))
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=8)), dtype=torch.float64)
    turned = (signs * w) @ H
    fourth, second = turned.pow(4).mean(), turned.square().mean()
    got = float(fourth / second**2)
    want = float(3 - 2 * w.pow(4).sum() / w.square().sum() ** 2)
    assert got == pytest.approx(want, abs=1e-12)
    residual(abs(got - want))


@pytest.mark.equation("eq-incoherence")
def test_no_entry_is_beyond_the_bound(residual):
    W = gauss(24, 64) ** 5  # heavy tails
    bound = math.sqrt(2 * math.log(2 * 24 * 64 / 0.01))
    beyond = 0
    for seed in range(300):
        turned = rotate.spin(W, seed)
        beyond += float((turned.abs().amax(1) / turned.square().mean(1).sqrt()).max()) > bound
    assert beyond / 300 <= 0.01
    residual(beyond / 300)


@pytest.mark.equation("eq-second-moment")
@pytest.mark.parametrize(("name", "n", "volume", "want"), [("d", 4, 2, 0.076603), ("e8", 8, 1, 0.0716821)])
def test_second_moments_of_the_cells(name, n, volume, want, residual):
    x = 8 * torch.rand(200_000, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    G = float((getattr(lattice, f"nearest_{name}")(x) - x).square().mean()) / volume ** (2 / n)
    off = abs(G / want - 1)
    assert off < 5e-3
    residual(off)


@pytest.mark.equation("eq-e8p")
def test_the_page_decodes_every_code(residual):
    every = page_function("decode")(torch.arange(2**16))
    assert len(every.unique(dim=0)) == 2**16
    down = torch.tensor([(code & 255).bit_count() % 2 == 1 for code in range(2**16)])
    shifted = every + torch.where(down, 0.25, -0.25)[:, None]
    minuses, total = (shifted < 0).sum(1), shifted.abs().sum(1).long()
    assert ((minuses + total) % 2 == 0).all()
    squares = shifted.square().sum(1)
    assert ((squares <= 10) | (squares == 12)).all()
    worst = float((every - lattice.points()).abs().max())
    assert worst == 0
    residual(worst)


@pytest.mark.equation("eq-block-feedback")
def test_eight_columns_at_a_time(residual):
    W, _, H = layer(O=5, I=24)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    w, Q, w2, total = W.clone(), torch.empty_like(W), W.clone(), 0.0
    worst = 0.0
    for b in range(0, 24, 8):
        here, later = slice(b, b + 8), slice(b + 8, None)
        worst = max(worst, float((w[:, here] - w2[:, here]).abs().max()))
        Q[:, here] = lattice.nearest_e8(w[:, here])
        e = (w[:, here] - Q[:, here]) @ torch.linalg.inv(U[here, here])
        total += float(e.square().sum())
        w[:, later] -= e @ U[here, later]
        if b < 16:  # by the definition: the best change of all later columns together
            error = W[:, : b + 8] - Q[:, : b + 8]
            w2[:, later] = W[:, later] + error @ H[: b + 8, later] @ torch.linalg.inv(H[later, later])
    assert worst < 1e-10
    assert total == pytest.approx(
        float(torch.trace((W - Q) @ H @ (W - Q).T)), rel=1e-10
    )  # eq-feedback-budget
    residual(worst)


@pytest.mark.equation("eq-interaction")
def test_an_additive_table_has_no_interaction(residual):
    interaction = page_function("interaction")
    additive = np.add.outer([0.3, 0.1, 0.7], [1.0, 2.0, 5.0])
    worst = np.abs(interaction(additive)).max()
    assert worst < 1e-12
    table = additive.copy()
    table[1, 2] += 0.9
    found = interaction(table)
    assert np.allclose(found.sum(0), 0)
    assert np.allclose(found.sum(1), 0)
    assert found[1, 2] == pytest.approx(0.9 * 4 / 9)
    residual(worst)


@pytest.mark.equation("eq-turbo-density")
@pytest.mark.parametrize("d", [3, 48])
def test_a_coordinate_of_a_random_direction(d, residual):
    def p(x):
        return (
            math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d - 1) / 2)) * (1 - x * x) ** ((d - 3) / 2)
        )

    assert integrate.quad(p, -1, 1)[0] == pytest.approx(1, abs=1e-9)
    unit = torch.nn.functional.normalize(gauss(20_000, d), dim=1)[:, 0].numpy()
    law = stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)  # the same density, under another name
    worst = max(abs(p(x) - law.pdf(x)) for x in np.linspace(-0.9, 0.9, 19))
    assert worst < 1e-9
    assert stats.kstest(unit, law.cdf).pvalue > 0.01
    residual(worst)


@pytest.mark.equation("eq-turbo-bias")
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_dot_products_come_out_too_small(bits, residual):
    x, y = gauss(3000, 48).float(), gauss(3000, 48, seed=1).float() + gauss(3000, 48).float()
    back = turbo.quantize(x, bits).dequantize()
    got = float((y * back).sum() / (y * x).sum())
    off = abs(got / (1 - turbo.codebook(48, bits)[1]) - 1)
    assert off < 0.01
    residual(off)


@pytest.mark.equation("eq-turbo-prod")
@pytest.mark.parametrize("bits", [1, 2])
def test_the_second_form_has_no_bias(bits, residual):
    x, y = gauss(1, 32).float(), (gauss(32) + 0.5 * gauss(32, seed=1)).float()
    found = torch.stack(
        [turbo.quantize(x, bits, form="prod", seed=2 * s).dequantize()[0] @ y for s in range(1500)]
    )
    sigma = float(found.std() / len(found) ** 0.5)
    true = float(x[0] @ y)
    assert abs(float(found.mean()) - true) < 3.5 * sigma
    assert sigma < 0.05 * abs(true)
    residual(abs(float(found.mean()) / true - 1))


@pytest.mark.equation("eq-absmean")
def test_trits_by_the_formula(residual):
    W = gauss(7, 30)
    s = W.abs().mean()
    want = s * torch.clamp(torch.round(W / s), -1, 1)
    trits, scale = ternary.absmean(W)
    worst = float((trits * scale - want).abs().max())
    assert worst == 0
    assert set(trits.unique().tolist()) == {-1.0, 0.0, 1.0}
    residual(worst)


@pytest.mark.equation("eq-straight-through")
def test_the_gradient_passes_the_rounding(residual):
    W, x = gauss(4, 9).requires_grad_(), gauss(9)
    trits, s = ternary.absmean(W)
    rounded = (trits * s).detach().requires_grad_()
    (ternary.through(W, trits * s) @ x).square().sum().backward()
    (rounded @ x).square().sum().backward()
    worst = float((W.grad - rounded.grad).abs().max())
    assert worst < 1e-12
    residual(worst)


def test_predict():
    scope = solution("ex-sub4-predict")
    assert scope["values"].tolist() == pytest.approx([192**-0.5])
    assert scope["error"] < 1e-12
    assert scope["kurtosis"](scope["once"]) == pytest.approx(1)
    kurtoses = [scope["kurtosis"](rotate.spin(scope["once"], seed)) for seed in range(1, 400)]
    assert np.mean(kurtoses) == pytest.approx(3 - 2 / 192, abs=0.05)


def test_derive():
    scope = solution("ex-sub4-derive")
    assert scope["left_over"] == pytest.approx(scope["budget"], rel=1e-9)
    assert scope["gain"] > 1


def test_code():
    scope = solution("ex-sub4-code")
    trits = np.random.default_rng(0).integers(-1, 2, (6, 33))
    x = np.random.default_rng(1).normal(size=33)
    assert scope["by_trits"](trits, 0.4, x) == pytest.approx(0.4 * trits @ x)
    data = scope["store5"](trits.ravel())
    assert len(data) == math.ceil(trits.size / 5)
    assert (scope["read5"](data, trits.size) == trits.ravel()).all()


def test_explore_the_lattice():
    error = solution("ex-sub4-lattice")["error"]
    assert error["kept", "as it is"] > 2 * error["kept", "turned"]
    assert error["planted", "as it is"] > 1.1 * error["planted", "turned"]


def test_gptq_of_the_page_is_the_packages():
    W, x, H = layer()
    H = H + 0.01 * H.diagonal().mean() * torch.eye(16, dtype=H.dtype)
    mine = page_function("feedback")(W, H, page_function("gaussian_grid")(W, 3))[0]
    theirs = gptq.quantize(W, 3, x, grid="midrise", clip="gaussian", scale_dtype=torch.float64)
    assert torch.allclose(mine, theirs.dequantize().double(), atol=1e-6)


def test_the_recorded_runs_show_what_the_page_says():
    """Orderings with margins: a better run may change the digits, not these."""
    runs = {(r["model"], r["bits"], r["method"]): r for r in quant_tables.table(RUNS, "table")}
    for model in MODELS:
        fall = [
            runs[model, 2, m]["lost"] for m in ("nearest, full range", "nearest", "turn, gptq", "lattice")
        ]
        assert all(b < 0.85 * a for a, b in itertools.pairwise(fall))
        assert max(r["lost"] for (m, bits, _), r in runs.items() if bits == 4 and m == model) < 0.02
    gptq_, turned = runs["attention", 2, "gptq"], runs["attention", 2, "turn, gptq"]
    step, error = gptq_["lost"] - turned["lost"], math.hypot(gptq_["lost_error"], turned["lost_error"])
    assert (round(step, 3), round(error, 3)) == (0.011, 0.012)  # unpaired
    assert 0 < step < error
    full, best, row = (runs["attention", 2, m] for m in (*quant_tables.GROUPS, "nearest"))
    assert [round(r["lost"], 2) for r in (full, best, row)] == [0.28, 0.11, 0.13]
    assert abs(best["lost"] - row["lost"]) < 2 * math.hypot(best["lost_error"], row["lost_error"])
    nearest = [runs[model, 2, "nearest"]["lost"] for model in MODELS]
    assert max(nearest) < 1.2 * min(nearest)
    cache = {(r["model"], r["bits"], r["method"], r["parts"]): r for r in quant_tables.table(RUNS, "cache")}
    for bits in (2, 3, 4):
        assert (
            cache["attention", bits, "mse", "kv"]["lost"]
            < 0.3 * cache["attention", bits, "prod", "kv"]["lost"]
        )
    kinds = {(r["model"], r["kind"]): r["apart"] / r["weights"] for r in quant_tables.table(RUNS, "kinds")}
    assert kinds["ssd", "SSD step"] > 2 * kinds["ssd", "SSD out"] > 8 * kinds["ssd", "MLP out"]
    assert kinds["attention", "attention out"] > 2 * kinds["attention", "attention k"]


def test_a_row_of_the_table_has_the_range_of_its_name():
    """Groups with a plain range stood beside rows with a searched one, under one name."""
    for name, (quantizer, how, *_) in quant_tables.METHODS.items():
        if name.startswith("nearest"):
            assert quantizer == "uniform"
            assert ("clip" not in how) == ("full range" in name)
            assert how.get("clip", "search") == "search"
    runs = {(r["bits"], r["method"]): r for r in quant_tables.table(RUNS, "table") if r["model"] == "attention"}
    for bits in (2, 3, 4):  # a searched range: a smaller group cannot fit worse than its row
        assert runs[bits, "nearest, best range, groups of 64"]["weight_error"] < runs[bits, "nearest"]["weight_error"]
    ways = {name: (quantizer, how) for name, (quantizer, how, _) in real_models.candidates()}
    for name in real_models.ROUNDING:  # of the real model rows and groups differ in nothing else
        (one, row), (two, groups) = ways[f"{name}, row"], ways[f"{name}, 128"]
        assert (one, row | {"group": 128}) == (two, groups)
        assert groups["clip"] == "search"
    assert "clip" not in ways["awq"][1]


def test_the_interaction_has_an_error():
    """Of independent losses: by the formula as by drawing; of the page's tables, as its text says."""
    interaction, spread = page_function("interaction"), page_function("spread")
    error = np.arange(1.0, 10).reshape(3, 3) ** 2
    rng = np.random.default_rng(0)
    drawn = np.std([interaction(error * rng.standard_normal((3, 3))) for _ in range(20_000)], axis=0)
    assert np.allclose(drawn, spread(error), rtol=0.02)
    runs = {(r["model"], r["bits"], r["method"]): r for r in quant_tables.table(RUNS, "table")}

    def worst(method):
        lost, error = ([[runs[a, b, method][of] for b in (4, 3, 2)] for a in ("attention", "ssd", "hybrid")]
                       for of in ("lost", "lost_error"))  # fmt: skip
        return np.abs(interaction(lost) / spread(error))

    assert worst("nearest").max() < 1.5
    assert worst("nearest, full range")[2].min() > 6  # the hybrid


def test_a_code_by_hand():
    """The point that the text decodes: four halves, four 3/2, seven signs, the eighth by parity, a quarter up."""
    p = np.array([0.5] * 4 + [1.5] * 4)
    signs = [1, -1, -1, 1, -1, 1, 1]
    assert lattice.patterns()[26].tolist() == p.tolist()
    _, point = page_function("point")(torch.from_numpy(lattice.patterns())[26], signs, up=True)
    signs.append(-1 if (signs.count(-1) + p.sum()) % 2 else 1)
    assert point.tolist() == (p * signs + 0.25).tolist()
    assert point[[0, -1]].tolist() == [0.75, -1.25]
    assert page_function("decode")(torch.tensor([0x1A96]))[0].tolist() == point.tolist()


def test_three_weights_by_hand():
    """The numbers of the text: guesses, what they miss, both errors, and the ratio that is promised."""
    H = torch.tensor([[1, 0.9, 0.81], [0.9, 1, 0.9], [0.81, 0.9, 1]], dtype=torch.float64)
    row, levels = torch.tensor([[9.0, -1, 5]], dtype=torch.float64), torch.tensor([-6.0, -2, 2, 6]).double()
    nearest = page_function("nearest", levels=levels)
    assert torch.linalg.solve(H[1:, 1:], H[1:, 0]).tolist() == pytest.approx([0.9, 0], abs=1e-12)
    Q, e = page_function("feedback")(row, H, nearest)
    assert Q.tolist() == [[6, 2, 6]]
    errors = [float((row - back) @ H @ (row - back).T) for back in (nearest(row), Q)]
    assert [round(x, 2) for x in errors] == [9.74, 3.34]
    assert errors[1] == pytest.approx(3**2 * 0.19 + 0.3**2 * 0.19 + 1.27**2)
    assert e.square().sum().item() == pytest.approx(errors[1])
    missed = 1 / torch.linalg.cholesky(torch.linalg.inv(H), upper=True).diagonal().square()
    assert missed.tolist() == pytest.approx([0.19, 0.19, 1])
    assert round(3 / float(missed.sum()), 1) == 2.2


def test_the_three_ideas_in_one_loop_are_the_packages():
    W, x, H = layer(O=8, I=16)
    H = H + 0.01 * H.diagonal().mean() * torch.eye(16, dtype=H.dtype)
    mine = page_function("three_ideas", rotate=rotate, every=lattice.points())(W, H)
    theirs = lattice.quantize(W, 2, x, scale_dtype=torch.float64).dequantize()
    assert torch.allclose(mine, theirs.double(), atol=1e-6)


def test_the_cache_code_of_the_page_is_the_packages():
    x = gauss(50, 48).float()
    mine = page_function("encode", turbo=turbo, rotate=rotate, d=48)(x, 2)
    theirs = turbo.quantize(x, 2, turn="hadamard", scale_dtype=torch.float32)
    assert torch.allclose(mine, theirs.dequantize(), atol=1e-4)


def test_the_interaction_that_the_page_reckons():
    runs = {(r["model"], r["bits"], r["method"]): r["lost"] for r in quant_tables.table(RUNS, "table")}
    lost = np.array([[runs[a, b, "nearest, full range"] for b in (4, 3, 2)] for a in ("attention", "ssd", "hybrid")])
    terms = [round(float(x), 3) for x in (lost[2, 2], lost[2].mean(), lost[:, 2].mean(), lost.mean())]
    assert terms == [0.464, 0.176, 0.572, 0.212]
    assert round(float(page_function("interaction")(lost)[2, 2]), 3) == -0.072


def test_the_head_is_most_of_what_2_bits_read():
    """SmolLM2's embedding, which is its head, in float32: 49,152 tokens of width 576."""
    rows = results.read(RUNS.parent / "real_speed.jsonl")
    read = {row["run"]["kind"]: row["metrics"]["weight_bytes"] for row in rows}
    head = 4 * 49_152 * 576
    assert round(head / 1e6) == 113
    assert read["2 bits"] - head < read["4 bits"] - head < 60e6


def test_what_a_rotation_adds_over_all_layers():
    """The layer of the page's first picture is one of eight that profit; the median layer does not."""
    runs = {(r["model"], r["bits"], r["method"]): r for r in quant_tables.table(RUNS, "table")}
    fed, turned = (runs["attention", 2, method]["layers"] for method in ("gptq", "turn, gptq"))
    gain = {name: turned[name][1] / fed[name][1] for name in fed}
    assert len(gain) == 56
    assert np.median(list(gain.values())) == pytest.approx(1, abs=0.02)
    assert np.median([g for name, g in gain.items() if name.endswith("mix.0.out")]) < 0.75


def test_the_ternary_runs_do_not_settle_the_gap():
    """The chosen runs of both kinds stand at the larger rate, and improve to their last step."""
    chosen = ternary_runs.table(RUNS.parent / "ternary.jsonl")
    assert {r["run"]["lr"] for r in chosen.values()} == {4e-3}
    for r in chosen.values():
        curve = [point["validation_bits"] for point in r["curve"]]
        assert curve[-1] == min(curve)
    gap = chosen["ternary-192"]["metrics"]["test_bits"] - chosen["full-192"]["metrics"]["test_bits"]
    assert gap == pytest.approx(0.037, abs=0.001)


@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
def test_four_bit_floats_on_a_gaussian_by_the_exchange_rate(form):
    W = gauss(256, 1024).float()

    def worth(q):
        return float((W - q.dequantize()).square().mean()) * 4**q.bits_per_weight

    floats = worth(microscaling.quantize(W, form=form))
    groups = worth(uniform.quantize(W, 4, group=128, grid="midrise", clip="search"))
    assert floats == pytest.approx({"mxfp4": 4.8, "nvfp4": 4.65}[form], abs=0.1)
    assert groups == pytest.approx(3.03, abs=0.06)
    assert worth(nf4.quantize(W)) == pytest.approx(2.58, abs=0.05)


def test_a_planted_model_says_the_same():
    lm = checkpoints.load("hybrid")
    ids = torch.arange(24)[None] % 256
    with torch.no_grad():
        twin = quant_tables.planted(lm)
        assert torch.equal(twin(ids)[0], lm(ids)[0])
    assert not torch.equal(twin.blocks[0].mlp.out.weight, lm.blocks[0].mlp.out.weight)


def test_kinds_are_every_row_once():
    for model in MODELS:
        lm = checkpoints.load(model)
        rows = {}
        for places in quant_tables.kinds(lm).values():
            for name, part in places:
                rows[name] = rows.get(name, 0) + part.stop - part.start
        assert rows == {name: m.out_features for name, m in quant_tables.quantized.linears(lm).items()}


def test_the_card_says_what_was_recorded():
    """SmolLM2 in 2 bits, to a tenth of a bit a byte."""
    found = real_tables.Records().real.found
    lost = [round(found[method, 2]["lost"], 1) for method in ("range", "feedback", "turn, feedback", "lattice")]
    assert lost == pytest.approx([3.8, 2.9, 0.6, 0.4])
    said = "\n".join(cell.source for cell in PAGE.cells)
    twin, real = ({m: model[m, 2]["lost"] for m in ("full range", "range", "lattice")}
                  for model in (real_tables.Records().twin.found, real_tables.Records().real.found))  # fmt: skip
    assert [round(twin["full range"] - twin[to], 2) for to in ("range", "lattice")] == [0.51, 0.59]
    assert [round(real["full range"] - real[to], 1) for to in ("range", "lattice")] == [0.6, 4.0]
    assert "Here most of the gain is the range, 0.44 of 0.56 bits" in said  # of the page's own, shorter run
    after = [f"{twin[name]:.2f}" for name in ("full range", "lattice", "range")]
    assert "loss falls from {} bits a byte to {}; the range alone brings it to {}".format(*after) in said
    assert "In SmolLM2, with 135 million weights, the range is 0.6 of 4.0" in said
    assert "a good range loses 3.8 bits a byte, feedback 2.9, a rotation before it 0.6, a lattice 0.4" in said


def test_the_kind_that_a_rotation_helps_and_the_kind_that_it_harms():
    """Output error of the median layer after feedback, with and without the rotation: out against all others."""
    record = real_tables.Records()

    def ratio(model, end):
        layers = [model.found[way, 2]["layers"] for way in ("turn, feedback", "feedback")]
        turned, fed = (np.median([error[1] for name, error in of.items() if name.endswith(end)]) for of in layers)
        return turned / fed

    others = (".q", ".k", ".v", "mlp.gate", "mlp.up", "mlp.out")
    assert ratio(record.twin, "mix.0.out") < 0.7
    assert ratio(record.real, "mix.0.out") > 3
    assert all(0.85 < ratio(record.twin, end) < 1.1 for end in others)
    assert all(ratio(record.real, end) < 0.9 for end in others)


def test_bytes_of_a_model_in_few_bits():
    """In 16 bits all weights; in fewer the embedding and the head stay, and every group of 128 has a scale."""
    bytes_of = page_function("bytes_of")
    model = published.LLAMA3_8B
    weights, cache = bytes_of(model, 16, 4096)
    assert weights == 2 * model.weights()
    assert cache == model.kv_bytes(4096)
    apart = 2 * model.Y * model.D
    assert bytes_of(model, 4, 1)[0] == (model.weights() - apart) * 4.125 / 8 + 2 * apart
    with torch.device("meta"):
        named = published.build("Llama-3-8B").named_parameters()
        kept = sum(p.numel() for name, p in named if "embed" in name or "head" in name)
    assert kept == apart
