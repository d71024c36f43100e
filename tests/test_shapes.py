import pytest
import torch

from postx.shapes import LETTERS, axes, check, check_lengths, check_shared


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
