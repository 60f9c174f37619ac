"""Recipes of the shortest runs: ResNet-20 on scikit-learn's digits, of 8×8 pixels."""

import json


def digits_recipe(tables: str, **data: object) -> str:
    """A recipe as TOML.

    Args:
        tables: the other tables, `[phase.BITS]` at least.
        data: further settings of the data set, such as validation=1300, which leaves 137 images to train on.
    """
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in data.items())
    return f'[model]\nname = "cifar10/resnet20"\nin_channels = 1\nimage_size = 8\n[data]\nname = "digits"\n{settings}{tables}'
