"""The model that ships: whole, within its size, and good on the example photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import in_this_process

from anchornet_ext import AnchorNet, TwoStageClassifier, count_macs

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def model() -> TwoStageClassifier:
    return TwoStageClassifier.from_pretrained("caltech101")


def test_the_package_holds_at_most_24_megabytes_of_weights() -> None:
    folder = ROOT / "anchornet_ext" / "pretrained"
    assert 1e6 < sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 24e6


def test_costs_are_counted_from_the_networks_that_ship(model: TwoStageClassifier) -> None:
    size = (3, 95, 95)
    glance, focus = count_macs(model.glance, size), count_macs(model.focus, size)
    anchor = count_macs(model.anchor, (3, 224, 224))
    assert anchor < count_macs(AnchorNet(102), (3, 224, 224))  # it is folded
    expected = [glance, *(glance + anchor + t * focus for t in range(1, 5))]
    result = model.classify(torch.zeros(2, 3, 224, 224), thresholds=[2.0] * 4)
    assert result.macs.tolist() == [expected[-1]] * 2
    assert model.classify(torch.zeros(1, 3, 224, 224), exit_at=1).macs.tolist() == [expected[0]]


def test_predict_classifies_the_example_photos_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    with in_this_process(capsys, "predict") as run:
        done = run(PHOTOS, "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 14
    # File names are <class>_<number>.webp. Ten are right; a few may turn with another torch.
    right = [a["label"].lower() == Path(a["photo"]).stem.rpartition("_")[0] for a in answers]
    assert sum(right) >= 8
    exits = {answer["exit"] for answer in answers}
    assert 1 in exits  # some photos need no more than the glance
    assert max(exits) > 1  # and some do
    for answer in answers:
        assert len(answer["steps"]) == answer["exit"]
        assert (answer["macs"] < answer["full_macs"]) == (answer["exit"] < 5)
