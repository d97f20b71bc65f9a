"""Starting from given weights: `init_from`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.training.checkpoint import load_checkpoint

_AVERAGED = "module."
"""What the names of a moving average's weights begin with."""


def read_weights(path: Path) -> dict[str, Any]:
    """What the file at `path` holds: a checkpoint of train.py, or a state_dict as torch.save writes it.

    Runs no code from the file. ConfigError where it cannot be read.
    """
    try:
        return load_checkpoint(path)
    except (EOFError, pickle.UnpicklingError) as error:  # torch's own words are advice to load it unsafely
        raise ConfigError(f"init_from={path} is no file of weights; give a checkpoint, or a state_dict") from error
    except (OSError, RuntimeError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"init_from={path} cannot be read as weights ({cause}); give a .pt file") from error


def put_weights(model: nn.Module, content: dict[str, Any], *, path: Path, needs_head: bool = False) -> None:
    """Puts the weights of `content`, as read from `path`, into `model`; the moving average's where there is one.

    The last layer stays as it was drawn where it has another number of outputs, unless `needs_head`; every other
    weight must be there, and no other.

    Raises:
        ConfigError: there are no weights, or they are of another model.
    """
    weights = _weights_in(content, path)
    own = model.state_dict()
    head = list(own)[-2:]  # torchvision's networks and ours end with their classifier
    if not needs_head and _is_of_other_classes(own, weights, head):
        weights = weights | {name: own[name] for name in head}
    wrong = [name for name in dict.fromkeys((*own, *weights)) if _shape(own, name) != _shape(weights, name)]
    if wrong:
        there, here = (_shape(holder, wrong[0]) or "not there" for holder in (weights, own))
        raise ConfigError(
            f"init_from={path} is of another model: {wrong[0]} is {there}, the model's is {here}, and "
            f"{len(wrong) - 1} more differ; choose its model.name and model.width"
        )
    model.load_state_dict(weights)


def _weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and content.get("average") is not None:
        found = {name.removeprefix(_AVERAGED): value for name, value in content["average"].items()}
        found.pop("n_averaged", None)
    else:
        found = content.get("model", content) if isinstance(content, dict) else {}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"init_from={path} holds no weights; give a checkpoint of train.py or a saved state_dict")
    return found


def _is_of_other_classes(own: dict[str, Tensor], weights: dict[str, Tensor], head: list[str]) -> bool:
    has_head = all(name in weights and own[name].shape[1:] == weights[name].shape[1:] for name in head)
    return has_head and any(own[name].shape != weights[name].shape for name in head)


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None
