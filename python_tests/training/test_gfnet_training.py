"""The stages of GFNet's training: what learns, what does not, and that the policy learns at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anchornet_ext.models.gfnet import GFNet, ProposalNetwork
from anchornet_ext.models.gfnet.gfnet import Step
from anchornet_ext.models.gfnet.proposal import Proposal
from anchornet_ext.training.gfnet import (
    PolicyLearner,
    SequenceLearner,
    policy_loss,
    sequence_loss,
)
from anchornet_ext.training.ppo import PPOConfig


def network(seed: int = 0) -> GFNet:
    torch.manual_seed(seed)
    sizes = {"classifier_hidden": 16, "policy_hidden": 12}
    return GFNet("resnet18", 5, num_exits=3, patch_size=40, **sizes)


IMAGES = torch.randn(4, 3, 48, 61, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 3, 1, 3])


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {key for key, value in after.state_dict().items() if not torch.equal(value, old[key])}


@pytest.mark.parametrize("actions", ["random", "policy"])
def test_stages_one_and_three_train_all_but_the_policy(actions: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    learner = SequenceLearner(model, actions).train()
    output = learner(IMAGES)
    assert output.shape == (2, 3, 4, 5)
    sequence_loss(output, LABELS, 1.0).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    names = changed(before, model)
    assert {name.partition(".")[0] for name in names} == {"glance", "focus", "classifier", "heads"}
    # The backbones' own last layers have no part in it with a recurrent classifier.
    trainable = {name for name, p in model.named_parameters() if ".network.fc." not in name}
    assert {n for n in trainable if not n.startswith("proposal.")} <= names


def test_a_frozen_glance_keeps_even_its_statistics() -> None:
    model = network()
    before = copy.deepcopy(model)
    learner = SequenceLearner(model, "random", freeze_glance=True).train()
    sequence_loss(learner(IMAGES), LABELS, 5.0).backward()
    assert not [name for name in changed(before, model) if name.startswith("glance.")]
    assert all(p.grad is None for p in model.glance.parameters())


def test_in_use_the_sequence_is_that_of_the_network() -> None:
    model = network()
    with torch.no_grad():
        output = SequenceLearner(model, "policy").eval()(IMAGES)
        torch.testing.assert_close(output[0], model(IMAGES))
        torch.testing.assert_close(
            PolicyLearner(model, PPOConfig()).eval()(IMAGES).logits, output[0]
        )


def test_loss_is_equation_three() -> None:
    output = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    wanted = 0.0
    for t in range(3):
        wanted += functional.cross_entropy(output[0, t], LABELS).item() / 3
        wanted += 5 * functional.cross_entropy(output[1, t], LABELS).item() / 3
    assert sequence_loss(output, LABELS, 5).item() == pytest.approx(wanted, rel=1e-5)
    soft = functional.one_hot(LABELS, 5).double()
    assert sequence_loss(output, soft, 5).item() == pytest.approx(wanted, rel=1e-5)


def test_stage_two_trains_the_policy_alone() -> None:
    model = network()
    before = copy.deepcopy(model)
    learner = PolicyLearner(model, PPOConfig()).train()
    rollout = learner(IMAGES)
    assert rollout.logits.shape == (3, 4, 5)
    assert rollout.log_probability.shape == rollout.values.shape == (2, 4)
    policy_loss(rollout, LABELS, PPOConfig()).backward()
    torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3).step()
    names = changed(before, model)
    assert {name.partition(".")[0] for name in names} == {"proposal"}
    assert {name for name, _ in before.named_parameters() if name.startswith("proposal.")} == names


def test_bad_actions() -> None:
    with pytest.raises(ValueError, match="actions must be one of random, policy, got 'best'"):
        SequenceLearner(network(), "best")


class _Hidden(nn.Module):
    """A world as GFNet sees it: whoever looks where the map points becomes sure of the truth.

    The map is the place (2, 1, 1); a patch counts the less the further it is from there.
    """

    num_exits, patch_size = 3, 10

    def __init__(self) -> None:
        super().__init__()
        self.proposal = ProposalNetwork((2, 1, 1), conv=False, hidden=16)

    def check_images(self, images: Tensor) -> None:
        pass

    def _step(self, images: Tensor, evidence: Tensor) -> Step:
        logits = torch.stack([evidence, -evidence], dim=1)
        place = images[:, :2, :1, :1]
        return Step(logits, evidence[:, None], place, evidence)

    def first_step(self, images: Tensor) -> Step:
        return self._step(images, torch.zeros(len(images)))

    def next_step(self, images: Tensor, rows: Tensor, top_left: Tensor, seen: Tensor) -> Step:
        distance = (top_left / 90 - images[:, :2, 0, 0]).norm(dim=1)
        return self._step(images, seen + (1 - 2 * distance))

    def propose(self, features: Tensor, hidden: Tensor | None) -> Proposal:
        found: Proposal = self.proposal(features, hidden)
        return found


def test_the_policy_learns_to_look_where_it_pays() -> None:
    torch.manual_seed(0)
    config = PPOConfig()
    learner = PolicyLearner(_Hidden(), config)  # type: ignore[arg-type]

    def images() -> Tensor:
        return torch.rand(256, 2, 1, 1).expand(-1, -1, 100, 100)

    def sure(batch: Tensor) -> float:
        learner.eval()
        with torch.no_grad():
            return learner(batch).logits[-1].softmax(dim=1)[:, 0].mean().item()

    held_out = images()
    before = sure(held_out)
    optimizer = torch.optim.Adam(learner.network.proposal.parameters(), 3e-3)
    for _ in range(80):
        learner.train()
        loss = policy_loss(learner(images()), torch.zeros(256, dtype=torch.int64), config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Looking at the middle always: 0.67. Looking at the very place: 0.98.
    assert sure(held_out) > max(0.9, before + 0.1)
