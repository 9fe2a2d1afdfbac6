"""The detector of the run directory in this folder: a RetinaNet on four small convolutions."""

from collections import OrderedDict

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork


class SmallBackbone(nn.Module):
    """Two levels, strides 8 and 16, under an FPN of 16 channels."""

    def __init__(self):
        super().__init__()

        def layer(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        self.stem = nn.Sequential(layer(3, 16), layer(16, 16))
        self.stage1, self.stage2 = layer(16, 32), layer(32, 32)
        self.fpn = FeaturePyramidNetwork([32, 32], 16)
        self.out_channels = 16

    def forward(self, images):
        finer = self.stage1(self.stem(images))
        return self.fpn(OrderedDict([("0", finer), ("1", self.stage2(finer))]))


def small_retinanet(num_classes=6):
    anchors = AnchorGenerator(((16, 24, 32), (40, 48, 64)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNet(
        SmallBackbone(), num_classes, anchor_generator=anchors, min_size=64, max_size=64, score_thresh=0.01
    )
