"""Checkpoints of one family each, whose config.json gets a key that is null or left out."""
import copy
import random

import random_checkpoints

NOT_READ = {"architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "vision_config", "audio_config"}
FAMILIES = sorted(set(random_checkpoints.DRAWN) - {"deepseek", "kimi_k2", "llama4"})  # those have no class of their own


def make(family, older, folder):
    """A checkpoint of the family; `older`: its rope as transformers 4 wrote it."""
    settings, n_expert, keep = random_checkpoints.DRAWN[family](random.Random(11))
    case = random_checkpoints.Case(family=family, made_as=family, settings=settings, n_expert=n_expert, keep=keep, older=older)
    return random_checkpoints.write(case, 3, folder)


def places(config, at=()):
    """The path of every key, of those in objects too."""
    for key, value in config.items():
        if key in NOT_READ:
            continue
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def changed(config, place, null):
    """The config with the key null, else without it."""
    config = copy.deepcopy(config)
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    if null:
        inner[place[-1]] = None
    else:
        del inner[place[-1]]
    return config
