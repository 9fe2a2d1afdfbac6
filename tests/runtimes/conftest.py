"""One-stage detectors whose heads say something: a trained RetinaNet, and others with weights to that end."""

import pytest
import torch
from torch import nn

from autoprune.config import ModelSpec
from autoprune.data import demo_detector
from autoprune.detectors import build, load_dense

SMALL = {"min_size": 128, "max_size": 128, "fpn_channels": 32, "returned_layers": [2, 3], "score_thresh": 0.1}
KINDS = {"fcos_resnet18_fpn": SMALL, "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.1}}


@pytest.fixture(scope="session", params=["retinanet", *sorted(KINDS)])
def one_stage(request):
    """A detector in eval mode that finds dozens of things in noise."""
    if request.param == "retinanet":
        spec = demo_detector.MODEL
        arguments = {**spec.arguments, "score_thresh": 0.001}
        return load_dense(spec.name, arguments, weights=str(demo_detector.WEIGHTS))[0]
    model = build(ModelSpec(name=request.param, arguments=KINDS[request.param], num_classes=4)).train()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the next batch; with fresh ones no signal gets through
    with torch.no_grad():
        model.head(list(model.backbone(torch.rand(4, 3, 320, 320, generator=generator)).values()))
        for parameter in model.head.parameters():
            if parameter.dim() == 4:
                scale = 1.5 * parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
