"""The output layer's answers beside log-probs, against the formulas on whole logits."""

import pytest
import torch
from torch import Tensor, nn

from raydpo.training import head as head_module
from raydpo.training import linear_head
from raydpo.training.head import HeadRequest, ReferenceHead, head_outputs

TOKENS, HIDDEN, VOCABULARY = 13, 8, 31


@pytest.fixture(autouse=True, params=["kept", "computed again"])
def small_chunks(request, monkeypatch) -> None:
    """Several chunks, and several blocks in each."""
    monkeypatch.setattr(head_module, "CHUNK_POSITIONS", 5)
    monkeypatch.setattr(linear_head, "_CPU_BLOCK", 2 * VOCABULARY)
    if request.param == "computed again":
        monkeypatch.setattr(head_module, "KEPT_LOGIT_BYTES", 0)


def make() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    return layer, hidden, torch.randint(VOCABULARY, (TOKENS,))


def test_log_probs_are_those_of_the_whole_softmax() -> None:
    layer, hidden, targets = make()
    logps, target_logits, top_logits, kl = head_outputs(layer, hidden, targets, HeadRequest())
    expected = layer(hidden).log_softmax(-1)[torch.arange(TOKENS), targets]
    torch.testing.assert_close(logps, expected)
    ours = torch.autograd.grad((logps**2).sum(), [hidden, layer.weight])
    theirs = torch.autograd.grad((expected**2).sum(), [hidden, layer.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert target_logits is None
    assert top_logits is None
    assert kl is None


def test_top_logits_leave_the_target_out() -> None:
    layer, hidden, targets = make()
    _, target_logits, top_logits, _ = head_outputs(layer, hidden, targets, HeadRequest(top_k=3))
    assert target_logits is not None
    assert top_logits is not None
    for row, target in enumerate(targets.tolist()):
        logits = layer(hidden[row]).tolist()
        assert target_logits[row].item() == pytest.approx(logits.pop(target), abs=1e-6)
        assert top_logits[row].tolist() == pytest.approx(sorted(logits)[:-4:-1], abs=1e-6)


def test_reference_kl_is_exact_and_its_gradient_is_that_of_the_formula() -> None:
    layer, hidden, targets = make()
    other = nn.Linear(HIDDEN, VOCABULARY)
    reference = ReferenceHead(hidden.detach(), other)
    request = HeadRequest(reference_kl=True)
    kl = head_outputs(layer, hidden, targets, request, reference)[3]
    reference_logps = other(hidden.detach()).detach().log_softmax(-1)
    logps = layer(hidden).log_softmax(-1)
    expected = (reference_logps.exp() * (reference_logps - logps)).sum(-1)
    assert kl is not None
    torch.testing.assert_close(kl, expected)
    ours = torch.autograd.grad((kl**2).sum(), [hidden, layer.weight])
    theirs = torch.autograd.grad((expected**2).sum(), [hidden, layer.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
