"""A loader's position as a few numbers, enough to continue under any number of workers or ranks."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.loader.order import Order

STATE_VERSION = 1

_log = logging.getLogger(__name__)


def make_state(order: Order, epoch: int, step: int) -> dict[str, Any]:
    """The state after every batch before `(epoch, step)`; the end of an epoch is the beginning of the next."""
    if step >= len(order):
        epoch, step = epoch + 1, 0
    return {
        "version": STATE_VERSION,
        "seed": order.seed,
        "epoch": epoch,
        "position": step * order.global_batch_size,
        "global_batch_size": order.global_batch_size,
        "order": order.fingerprint(),
    }


def resume_point(state: dict[str, Any], order: Order) -> tuple[int, int, int]:
    """`(epoch, step, batch_size per rank)` at which `order` continues `state`.

    Raises:
        ValueError: the state was taken with another version, seed or source, or its global batch cannot be divided
            among this order's ranks.
    """
    for key, ours in (("version", STATE_VERSION), ("seed", order.seed), ("order", order.fingerprint())):
        if state.get(key) != ours:
            what = " (it stands for the samples, the sampler and the transforms)" if key == "order" else ""
            raise ValueError(
                f"this state has {key}={state.get(key)!r}, this loader {ours!r}{what}; it cannot be continued"
            )
    for key in ("epoch", "position", "global_batch_size"):
        value = state.get(key)
        if not isinstance(value, int) or value < (key == "global_batch_size"):
            raise ValueError(f"this state has {key}={value!r}, which no loader has given; it cannot be continued")
    global_batch_size = int(state["global_batch_size"])
    if state["position"] % global_batch_size or state["position"] >= max(1, order.sampler.num_samples):
        raise ValueError(
            f"this state has position={state['position']}, which is not the beginning of a global batch of "
            f"{global_batch_size} of {order.sampler.num_samples} samples; it cannot be continued"
        )
    batch_size, rest = divmod(global_batch_size, order.world_size)
    if rest or not batch_size:
        raise ValueError(
            f"the state's global batch of {global_batch_size} cannot be divided among "
            f"world_size={order.world_size} ranks; use a number of ranks that divides it"
        )
    if batch_size != order.batch_size:
        _log.warning(
            "batch_size is now %d per rank and not %d: the state's global batch of %d is kept",
            batch_size,
            order.batch_size,
            global_batch_size,
        )
    return int(state["epoch"]), int(state["position"]) // global_batch_size, batch_size
