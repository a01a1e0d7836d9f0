"""GFNet's published settings follow the backbone's family, whoever's backbone it is."""

from __future__ import annotations

import pytest

from anchornet_ext.systems import find_system
from anchornet_ext.systems.gfnet import GFNetOptions

USUAL, REGNET, MOBILE = (0.01, 1.0, True), (0.02, 1.0, True), (0.005, 5.0, False)


@pytest.mark.parametrize(
    ("backbone", "recipe"),
    [
        ("resnet50", USUAL),
        ("densenet121", USUAL),
        ("regnet_y_600mf", REGNET),
        ("mobilenet_v3_large", MOBILE),
        ("efficientnet_b2", MOBILE),
        ("timm/resnet18", USUAL),
        ("timm/densenet121", USUAL),
        ("timm/regnety_002", REGNET),
        ("timm/mobilenetv3_large_100", MOBILE),
        ("timm/tf_mobilenetv3_large_075", MOBILE),
        ("timm/efficientnet_b0", MOBILE),
        ("timm/tf_efficientnet_b2.in1k", MOBILE),
        ("timm/test_efficientnet", MOBILE),
    ],
)
def test_a_backbone_has_the_recipe_of_its_family(backbone, recipe):
    assert GFNetOptions(backbone=backbone).recipe() == recipe


@pytest.mark.parametrize("backbone", ["efficientnet_b2", "timm/efficientnet_b0"])
def test_no_efficientnet_is_refined_in_the_end(backbone):
    stages = find_system("gfnet").stages_to_run(GFNetOptions(backbone=backbone))
    assert stages == ("backbone", "glance", "sequence", "policy")


def test_what_is_asked_for_wins():
    options = GFNetOptions(backbone="timm/regnety_002", encoder_lr=0.1, regularisation=0.0)
    assert options.recipe() == (0.1, 0.0, True)
