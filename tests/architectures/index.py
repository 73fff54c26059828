"""All architectures, and what each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from architectures import convnets, dense_prediction, mobile, sequence, vision_transformers

__all__ = ["ARCHITECTURES", "Architecture"]


class Architecture(NamedTuple):
    """A network of the tests.

    Attributes:
        factory: Makes it, the same every time.
        inputs: What it takes, as ``--input`` says it; names are free axes.
    """

    factory: Callable[[], nn.Module]
    inputs: tuple[str, ...]

    @property
    def source(self) -> str:
        """As a user would name it, with this package's folder on the import path."""
        return f"{self.factory.__module__}:{self.factory.__name__}"


#: Fully convolutional up to the pooling, or to the end.
_ANY_SIZE = ("image=float32[batch,3,height,width]",)
#: Sizes are part of the weights.
_ONE_SIZE = ("image=float32[batch,3,64,64]",)
_TEXT = ("tokens=int64[batch,length]",)

_INPUTS: dict[Callable[[], nn.Module], tuple[str, ...]] = {
    convnets.resnet18: _ANY_SIZE,
    convnets.resnet50: _ANY_SIZE,
    convnets.vgg_bn: _ONE_SIZE,
    convnets.densenet: _ANY_SIZE,
    convnets.squeezenet: _ANY_SIZE,
    convnets.googlenet: _ANY_SIZE,
    convnets.regnet: _ANY_SIZE,
    mobile.mobilenet_v2: _ANY_SIZE,
    mobile.mobilenet_v3: _ANY_SIZE,
    mobile.efficientnet: _ANY_SIZE,
    mobile.ghostnet: _ANY_SIZE,
    mobile.shufflenet_v2: _ANY_SIZE,
    mobile.convnext: _ANY_SIZE,
    vision_transformers.vit: _ONE_SIZE,
    vision_transformers.deit: _ONE_SIZE,
    vision_transformers.swin: _ONE_SIZE,
    vision_transformers.mlp_mixer: _ONE_SIZE,
    vision_transformers.poolformer: _ANY_SIZE,
    sequence.lstm_tagger: _TEXT,
    sequence.gru_classifier: _TEXT,
    sequence.bert: ("input_ids=int64[batch,length]", "attention_mask=int64[batch,length]"),
    sequence.gpt: ("input_ids=int64[batch,length]",),
    sequence.transformer_encoder: ("series=float32[batch,length,8]", "mask=bool[batch,length]"),
    sequence.translator: ("source=int64[batch,length]", "target=int64[batch,target_length]"),
    sequence.keyword_net: ("sound=float32[batch,1,samples]",),
    sequence.crnn: ("image=float32[batch,1,32,width]",),
    dense_prediction.unet: _ANY_SIZE,
    dense_prediction.deeplab: _ANY_SIZE,
    dense_prediction.fpn: _ANY_SIZE,
    dense_prediction.ssdlite: _ANY_SIZE,
    dense_prediction.style_transfer: _ANY_SIZE,
    dense_prediction.super_resolution: ("image=float32[batch,1,height,width]",),
}

ARCHITECTURES = {factory.__name__: Architecture(factory, inputs) for factory, inputs in _INPUTS.items()}
