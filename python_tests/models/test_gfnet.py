"""GFNet: its cost, its laziness, and the files that its authors released."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchornet_ext.inference.lazy_exits import classify
from anchornet_ext.models.gfnet import GFNet, load_released_gfnet
from anchornet_ext.models.gfnet.proposal import entropy, log_probability, places

#: Section 4 of SYSTEMS' source: GMACs of GFNet with ResNet-50 at 96, inputs 1 to 5.
PUBLISHED_RESNET50 = (0.76, 1.57, 2.38, 3.18, 3.99)
SMALL: dict[str, Any] = {"num_exits": 3, "patch_size": 40}
RECURRENT: dict[str, Any] = {
    **SMALL, "recurrent": True, "policy_conv": False, "classifier_hidden": 16, "policy_hidden": 12
}  # fmt: skip
CASCADED: dict[str, Any] = {**SMALL, "recurrent": False, "policy_conv": True, "policy_hidden": 12}


def small(seed: int = 0, backbone: str = "resnet18", **options: Any) -> GFNet:
    """In float64: a difference in the last bit must not move a patch by a pixel."""
    torch.manual_seed(seed)
    network = GFNet(backbone, 5, **options).double().eval().requires_grad_(False)
    # A new actor looks at the same place of all images; this one, at both steps, at places that lie
    # well apart: what tells the steps apart does not move it, and what tells images apart much.
    noise = torch.randn(2, 16, 3, network.patch_size, network.patch_size, dtype=torch.float64)
    first = network.proposal(network.glance(noise[0])[0], None).hidden  # (16, H)
    second = network.proposal(network.focus(noise[1])[0], first).hidden
    actor = network.proposal.actor[0]
    between = nn.functional.normalize(second.mean(0) - first.mean(0), dim=0)
    actor.weight.sub_(actor.weight @ between[:, None] * between)
    actor.weight.mul_(2 / actor(first).std(0)[:, None])
    actor.bias.copy_(-actor.weight @ first.mean(0))
    return network


@pytest.fixture(scope="module", params=[RECURRENT, CASCADED], ids=["recurrent", "cascaded"])
def network(request: pytest.FixtureRequest) -> GFNet:
    network = small(backbone="timm/test_resnet", **request.param)
    progress = network.begin(torch.randn(5, 3, 48, 61, dtype=torch.float64))
    for _ in range(3):
        progress.next_logits()
    for step in range(2):
        assert len(progress.top_left[:, step].unique(dim=0)) > 2
    return network


def test_published_cost() -> None:
    with torch.device("meta"):
        macs = GFNet("resnet50", 1000).macs_per_exit((224, 224))
    assert [round(cost / 1e9, 2) for cost in macs] == list(PUBLISHED_RESNET50)


@pytest.mark.parametrize(
    ("backbone", "recurrent", "conv", "hidden"),
    [
        ("densenet121", True, False, 1024),
        ("regnet_y_400mf", True, True, 256),
        ("mobilenet_v3_large", False, True, 256),
        ("efficientnet_b2", False, True, 256),
        ("timm/resnet18", False, True, 256),
    ],
)
def test_families(backbone: str, recurrent: bool, conv: bool, hidden: int) -> None:
    """Appendix A.1; and the parts of each backbone put together are the backbone."""
    torch.manual_seed(0)
    network = GFNet(backbone, 7, num_exits=2)
    assert network.recurrent is recurrent
    assert isinstance(network.proposal.state_encoder[0], nn.Conv2d) is conv
    assert network.proposal.gru.hidden_size == hidden
    encoder = network.glance.eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        features, vector = encoder(images)
        torch.testing.assert_close(encoder.last_layer(vector), encoder.network(images))
    assert features.shape[2:] == (3, 3)


@given(data=st.data(), batch=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_who_leaves_changes_nothing_for_who_stays(
    network: GFNet, data: st.DataObject, batch: int, seed: int
) -> None:
    """Batch, order and compaction: whatever is kept, an image's logits are its own."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 48, 61, dtype=torch.float64, generator=generator)
    alone = [network(image[None])[:, 0] for image in images]  # (T, n) each
    left = list(range(batch))
    progress = network.begin(images)
    for step in range(network.num_exits):
        logits = progress.next_logits()
        assert logits.shape == (len(left), 5)
        for row, image in enumerate(left):
            torch.testing.assert_close(logits[row], alone[image][step], rtol=1e-9, atol=1e-9)
        rows = data.draw(st.permutations(range(len(left))), label="order")
        rows = rows[: data.draw(st.integers(0, len(left)), label="kept")]
        left = [left[row] for row in rows]
        progress.keep(torch.tensor(rows, dtype=torch.int64))
        assert progress.top_left.shape == (len(left), step, 2)


def test_patches_are_where_it_says(network: GFNet) -> None:
    """With a focus network that is told apart by its input, against slicing by hand."""
    images = torch.randn(3, 3, 48, 61, dtype=torch.float64)
    progress = network.begin(images)
    progress.next_logits()
    seen: list[torch.Tensor] = []
    handle = network.focus.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    progress.next_logits()
    handle.remove()
    for image, patch, (row, column) in zip(
        images, seen[0], progress.top_left[:, 0].tolist(), strict=True
    ):
        assert torch.equal(patch, image[:, row : row + 40, column : column + 40])
    progress.next_logits()
    with pytest.raises(RuntimeError, match="no more than 3 exits"):
        progress.next_logits()


@given(
    action=st.lists(st.tuples(*[st.floats(-1, 2, width=32)] * 2), min_size=1, max_size=4),
    height=st.integers(40, 300),
    width=st.integers(40, 300),
)
def test_places(action: list[tuple[float, float]], height: int, width: int) -> None:
    top_left = places(torch.tensor(action), (height, width), 40)
    assert top_left.dtype == torch.int64
    for (a, b), (row, column) in zip(action, top_left.tolist(), strict=True):
        for share, room, place in ((a, height - 40, row), (b, width - 40, column)):
            exact = min(max(share, 0.0), 1.0) * room
            assert 0 <= place <= room
            assert exact - 1 - 1e-4 < place < exact + 1e-4


def test_probabilities_are_those_of_normals() -> None:
    mean, action = torch.rand(6, 2).double(), torch.rand(6, 2).double()
    normal = torch.distributions.Normal(mean, 0.1)
    wanted = normal.log_prob(action).sum(dim=1)
    torch.testing.assert_close(log_probability(action, mean, 0.1), wanted)
    torch.testing.assert_close(normal.entropy().sum(dim=1)[0].item(), entropy(0.1))


@given(batch=st.integers(0, 4), threshold=st.sampled_from([-1.0, 0.25, 0.4, 1.0]))
@settings(max_examples=6, deadline=None)
def test_images_leave_where_their_own_logits_say(
    network: GFNet, batch: int, threshold: float
) -> None:
    images = torch.randn(batch, 3, 48, 61, dtype=torch.float64)
    found = classify(network, images, (threshold,) * 2)
    sure = network(images).float().softmax(dim=-1).amax(dim=-1)  # (T, B)
    for image in range(batch):
        leaves = [t for t in range(2) if sure[t, image] > threshold] + [2]
        assert found.exit_step[image] == 1 + leaves[0]
        assert found.macs[image] == network.macs_per_exit((48, 61))[leaves[0]]


def test_what_cannot_be_begun(network: GFNet) -> None:
    images = torch.zeros(1, 3, 48, 48, dtype=torch.float64)
    with pytest.raises(ValueError, match="training mode"):
        copy.deepcopy(network).train().begin(images)
    with pytest.raises(TypeError, match=r"floating point and normalised, got torch\.uint8"):
        network.begin(images.byte())
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got \(3, 48, 48\)"):
        network.begin(images[0])


def test_macs_are_those_of_a_run(network: GFNet) -> None:
    """The proposal of a step is paid by those who stay for it."""
    macs = network.macs_per_exit((48, 61))
    assert all(after - before > macs[0] for before, after in pairwise(macs))
    with pytest.raises(ValueError, match="at least a patch of 40 pixels, got 39x61"):
        network.macs_per_exit((39, 61))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_exits": 1}, "num_exits must be at least 2, got 1"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"policy_hidden": 0}, "policy_hidden must be at least 1, got 0"),
        ({"backbone": "resnet51"}, "no classification model named 'resnet51'"),
        ({"backbone": "squeezenet1_1"}, "'squeezenet1_1' is none"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GFNet(**{"backbone": "resnet18", "num_classes": 5, **options})


# -- released files -------------------------------------------------------------------------


def released(network: GFNet, prefix: str = "module.") -> dict[str, Any]:
    def part(module: nn.Module) -> dict[str, torch.Tensor]:
        return {prefix + key: value for key, value in module.state_dict().items()}

    return {
        "model_prime_state_dict": part(network.glance.network),
        "model_state_dict": part(network.focus.network),
        "fc": part(network.classifier),
        "policy": network.proposal.state_dict(),
        "flops": [1.0, 2.0],
    }


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_released_layout(network: GFNet, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "gfnet.pth.tar"
    single = small(**(RECURRENT if network.recurrent else CASCADED)).float()
    torch.save(released(single, prefix), path)
    loaded = load_released_gfnet(
        path, "resnet18", patch_size=40, num_exits=3 if network.recurrent else None
    )
    assert not loaded.training
    images = torch.randn(2, 3, 50, 50)
    with torch.no_grad():
        assert torch.equal(loaded(images), single(images))


def test_released_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    whole = released(small(**RECURRENT).float())

    def load(content: Any, **options: Any) -> None:
        torch.save(content, path)
        load_released_gfnet(path, "resnet18", **{"patch_size": 40, "num_exits": 3, **options})

    with pytest.raises(ValueError, match="no whole GFNet: it has no policy"):
        load({key: value for key, value in whole.items() if key != "policy"})
    with pytest.raises(ValueError, match="holds a list"):
        load([1])
    with pytest.raises(ValueError, match=r"of another shape: proposal\.state_encoder\.0\.weight"):
        load(whole, patch_size=70)
    rest = {k: v for k, v in whole["model_state_dict"].items() if "conv1.weight" not in k}
    with pytest.raises(ValueError, match=r"missing: model_state_dict: conv1\.weight"):
        load({**whole, "model_state_dict": rest})
    with pytest.raises(ValueError, match="unexpected: fc: extra"):
        load({**whole, "fc": {**whole["fc"], "extra": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"its fc has no weights 'fc\.weight'"):
        load({**whole, "fc": {"rnn.weight_hh_l0": torch.ones(48, 16)}})
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint of plain weights"):
        load_released_gfnet(path, "resnet18")
    with pytest.raises(FileNotFoundError):
        load_released_gfnet(tmp_path / "none.pth", "resnet18")
