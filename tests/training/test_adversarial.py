import torch
from torch import Tensor

from training.adversarial import perturb

TARGET = torch.tensor([1.0, -2.0, 0.5, 3.0])


def loss_of(items: Tensor) -> Tensor:
    return ((items * TARGET).sum(-1).sin() + 0.1 * (items**2).sum(-1))[..., :2].sum()


def some_items() -> Tensor:
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def test_perturbation_raises_the_loss_and_stays_in_the_ball() -> None:
    items = some_items()
    for steps in (1, 5):
        delta = perturb(loss_of, items, epsilon=0.1, steps=steps)
        assert loss_of(items + delta) > loss_of(items)
        assert (delta.norm(dim=-1) <= 0.1 * items.norm(dim=-1) * (1 + 1e-5)).all()
        assert not delta.requires_grad


def test_one_step_is_fgm() -> None:
    items = some_items().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(items), items)
    expected = (
        0.2
        * items.norm(dim=-1, keepdim=True)
        * gradient
        / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    )
    assert torch.allclose(perturb(loss_of, items, epsilon=0.2, steps=1), expected, atol=1e-6)


def test_more_steps_push_harder() -> None:
    items = some_items()
    gains = [loss_of(items + perturb(loss_of, items, epsilon=0.8, steps=steps)) for steps in (1, 20)]
    assert gains[1] > gains[0]


def test_what_the_loss_does_not_see_is_not_moved() -> None:
    delta = perturb(loss_of, some_items(), epsilon=0.1, steps=3)
    assert (delta[:, 2] == 0).all()
    assert torch.isfinite(perturb(loss_of, torch.zeros(5, 3, 4), epsilon=0.1, steps=3)).all()


def test_a_loss_at_hand_saves_its_pass() -> None:
    calls = 0

    def counted(items: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(items)

    items = some_items().requires_grad_(True)
    plain = perturb(counted, items, epsilon=0.1, steps=2)
    first = loss_of(items)
    calls = 0
    assert torch.allclose(perturb(counted, items, epsilon=0.1, steps=2, first_loss=first), plain)
    assert calls == 1
