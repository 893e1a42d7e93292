"""Fine-tunes a ResNet-18 of KerasHub (`pip install "tl_research[hub]"`).

    python train.py --flagfile=flowers.flags --extension=examples/keras_hub_backbone.py \
        --unfreeze=0%,stack3_block1

With --weights=imagenet KerasHub downloads its preset; --weights=none draws random ones. BatchNorm
folds as in any other backbone.
"""

import keras_hub

RESNET18 = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 128, 256, 512],
    "stackwise_num_blocks": [2, 2, 2, 2],
    "stackwise_num_strides": [1, 2, 2, 2],
    "block_type": "basic_block",
}


def make_backbone(config):
    shape = (config.image_size, config.image_size, 3)
    if config.weights == "imagenet":
        model = keras_hub.models.Backbone.from_preset("resnet_18_imagenet", image_shape=shape)
    else:
        model = keras_hub.models.ResNetBackbone(**RESNET18, image_shape=shape)
    blocks = r"(?P<conv1>conv1_|pool1_)|(?P<block>stack\d_block\d+)_"
    return model, {"preprocessing": "torch", "blocks": blocks}
