import pytest
import torch

from postx import mixers, shapes
from postx.shapes import (
    LETTERS,
    axes,
    check,
    check_lengths,
    check_shared,
    named,
    positive,
    real,
    trusted,
    whole,
)


def test_letters_are_read_from_the_name():
    assert axes("q_BTHK") == "BTHK"
    assert axes("log_A_real_DN") == "DN"
    assert set("BTMWHGKVDEFLRNCYOI") == set(LETTERS)
    with pytest.raises(ValueError, match="axis letters"):
        axes("query")


def test_sizes_are_collected_and_none_is_passed_over():
    sizes = check({"V": 3}, q_BTHK=torch.zeros(2, 5, 4, 8), k_BTGK=torch.zeros(2, 5, 1, 8), v_BTGV=None)
    assert sizes == {"V": 3, "B": 2, "T": 5, "H": 4, "K": 8, "G": 1}


def test_an_error_quotes_argument_axes_origin_and_shape():
    q = torch.zeros(2, 5, 4, 8)
    with pytest.raises(
        ValueError,
        match=r"k_BTGK: expected axes \[B, T, G, K\] with K=8 \(from q_BTHK\), got shape \(2, 5, 1, 7\)",
    ):
        check(q_BTHK=q, k_BTGK=torch.zeros(2, 5, 1, 7))
    with pytest.raises(ValueError, match=r"q_BTHK: expected 4 axes \[B, T, H, K\], got shape \(2, 5, 4\)"):
        check(q_BTHK=q[..., 0])
    with pytest.raises(ValueError, match=r"with B=3 \(from the call\)"):
        check({"B": 3}, q_BTHK=q)
    with pytest.raises(TypeError, match="q_BTHK: expected a torch.Tensor .* got list"):
        check(q_BTHK=[1.0])


def test_shared_heads_must_divide():
    assert check_shared("k", 2, 8) == 4
    for groups in (3, 0):
        with pytest.raises(ValueError, match=f"{groups} heads do not divide the 8"):
            check_shared("k", groups, 8)


def test_lengths():
    check_lengths(None, 2, 5)
    check_lengths(torch.tensor([0, 5]), 2, 5)
    for bad, message in (
        (torch.tensor([1, 6]), "from 0 to T=5"),
        (torch.tensor([-1, 2]), "from 0 to T=5"),
        (torch.tensor([1.0, 2.0]), "expected integers"),
        (torch.tensor([1]), "with B=2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_lengths(bad, 2, 5)


STATE = "S_BGK+1", "pos_B"
APART = "r_BK", "r_BMK"


@named
def door(q_BHK, k_BGK, *, r_BK=None, r_BMK=None, S=None, chunk=1):
    return q_BHK.shape


def test_names_are_read_from_the_signature():
    q, k = torch.zeros(2, 4, 8), torch.zeros(2, 2, 8)
    assert door(q, k) == q.shape
    with pytest.raises(ValueError, match=r"k_BGK: expected axes \[B, G, K\] with K=8 \(from q_BHK\), got"):
        door(q, k_BGK=k[..., 1:])
    with pytest.raises(ValueError, match="k_BGK: 3 heads do not divide the 4"):
        door(q, torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 2.0"):
        door(q, k, chunk=2.0)
    assert door(q, k, r_BK=torch.zeros(2, 3), r_BMK=torch.zeros(2, 5, 3)) == q.shape  # their K is their own
    with pytest.raises(ValueError, match=r"r_BMK: expected axes .* with K=3 \(from r_BK\)"):
        door(q, k, r_BK=torch.zeros(2, 3), r_BMK=torch.zeros(2, 5, 8))


def test_states_are_named():
    q, k, pos = torch.zeros(2, 4, 8), torch.zeros(2, 2, 8), torch.zeros(2)
    assert door(q, k, S=(torch.zeros(2, 2, 9), pos)) == q.shape
    with pytest.raises(ValueError, match=r"S_BGK: expected axes \[B, G, K\+1\] with K=8 \(from q_BHK\), got"):
        door(q, k, S=(k, pos))
    with pytest.raises(ValueError, match=r"S: expected a tuple \(S_BGK\+1, pos_B\), got 1 parts"):
        door(q, k, S=(k,))


def test_what_was_checked_at_the_door_is_not_checked_again(monkeypatch):
    seen, whole_check = [], shapes._check
    monkeypatch.setattr(shapes, "_check", lambda *a: seen.append(shapes.is_trusted()) or whole_check(*a))
    mixer = mixers.load("linear")
    z, w = mixer.example(6)
    mixer.recurrent(*z, S=mixer.init(*(x[:, 0] for x in z)), **w)
    assert seen.count(False) == 2  # of init, and of the form with its state
    with trusted():
        assert check(q_BHK=torch.zeros(2, 4, 8), k_BHK=torch.zeros(1, 4, 9)) == {"B": 1, "H": 4, "K": 9}
    with pytest.raises(ValueError, match="k_BHK: expected"):
        check(q_BHK=torch.zeros(2, 4, 8), k_BHK=torch.zeros(1, 4, 9))


def test_a_form_compiles_whole():
    mixer = mixers.load("gla")
    z, _ = mixer.example(6)
    y, S = torch.compile(mixer.parallel, backend="eager", fullgraph=True)(*z)
    assert torch.equal(y, mixer.parallel(*z)[0])


def test_whole_numbers():
    positive(T=1e6, B=3)
    for bad in (0, 1.5, True, -2):
        for look in (positive, whole):
            with pytest.raises(ValueError, match="n: expected a whole number >= 1"):
                look(n=bad)
    with pytest.raises(ValueError, match="n: expected"):
        whole(n=2.0)


def test_what_lies_past_a_row_is_zero():
    x = torch.full((2, 3, 2), torch.nan)
    x[0], x[1, 0] = 1, 2
    assert real(x, torch.tensor([3, 1]))[1].tolist() == [[2, 2], [0, 0], [0, 0]]
    assert real(x, None) is x
