import torch
from torch import Tensor

from training.adversarial import freelb_losses, perturb, vulnerability
from training.config import AdversarialConfig

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
    (first,) = torch.autograd.grad(loss_of(items), items)
    calls = 0
    assert torch.allclose(perturb(counted, items, epsilon=0.1, steps=2, first_gradient=first), plain)
    assert calls == 1


def test_the_radius_may_differ_from_row_to_row() -> None:
    items, sizes = some_items(), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).view(-1, 1, 1)
    moved = perturb(loss_of, items, epsilon=sizes, steps=1).norm(dim=-1) / items.norm(dim=-1)
    assert torch.allclose(moved[:, :2], sizes.view(-1, 1).expand(-1, 2), atol=1e-6)


def test_freelb_learns_from_every_step_of_an_ascent() -> None:
    items = some_items().requires_grad_(True)
    seen: list[Tensor] = []

    def watched(moved: Tensor) -> Tensor:
        seen.append(moved.detach().clone())
        return loss_of(moved)

    loss = freelb_losses(watched, items, epsilon=0.3, steps=3, generator=torch.Generator().manual_seed(0))
    losses = [loss_of(moved) for moved in seen]
    assert torch.allclose(loss, sum(losses) / 3)
    assert losses[0] < losses[2]
    for moved in seen:
        assert ((moved - items).norm(dim=-1) <= 0.3 * items.norm(dim=-1) * (1 + 1e-5)).all()
    (gradient,) = torch.autograd.grad(loss, items)
    assert gradient.abs().sum() > 0


def test_who_is_learned_well_is_moved_further() -> None:
    factors = vulnerability(torch.tensor([0.5, 0.5, 4.0, 2.25]), torch.tensor([0, 0, 1, 2]), 4).flatten()
    assert factors[0] > 1.0 > factors[1]
    assert factors[3] > 1.0  # no target, nothing to lose


def test_strength_begins_grows_and_stays() -> None:
    config = AdversarialConfig(start_step=10, ramp_steps=4)
    assert [config.strength(step) for step in (0, 9, 10, 11, 13, 99)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert AdversarialConfig(start_step=0).strength(0) == 1.0
    assert AdversarialConfig(enabled=False, start_step=0).strength(5) == 0.0
