"""The picture of a sweep over cache capacities: measured hit rates beside what theory says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.bench.compare import Section
from pipeline.bench.sweep_dir import Trial
from pipeline.cache.theory import lru_hit_rate
from pipeline.training.replacing import replacing

# Okabe and Ito's palette; each policy has a marker of its own as well, hollow, for two often lie at one place.
_STYLES = {"pinned": ("#0072B2", "o", 12), "lru": ("#D55E00", "s", 9), "valued": ("#009E73", "^", 7)}
_OTHER = ("#CC79A7", "D", 9)
_TEXT_PT, _TITLE_PT = 9.0, 12.0


def capacities_vary(sections: Sequence[Section]) -> bool:
    """Whether there is a picture to draw: two capacities or more, with hit rates."""
    return len({round(trial.result["cache_capacity_pct"], 3) for trial in _measured(sections)}) > 1


def draw_cache(sections: Sequence[Section], path: Path) -> None:
    """Draws the hit rates of `sections` as a PNG of 1080 by 660 pixels at `path`."""
    with replacing(path) as file:
        cache_figure(sections).savefig(file, format="png")


def cache_figure(sections: Sequence[Section]) -> Figure:
    """The figure that `draw_cache` saves; machines share it, for a hit rate is a matter of the order alone."""
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    c = np.linspace(0, 1, 201)
    axes.plot(100 * c, 100 * c, color=_STYLES["pinned"][0], linewidth=1.6, label="theory, pinned: c, the most there is")
    axes.plot(
        100 * c, [100 * lru_hit_rate(float(x)) for x in c],
        color=_STYLES["lru"][0], linestyle="--", linewidth=1.6, label="theory, LRU: c + (1 - c) ln(1 - c)",
    )  # fmt: skip
    by_policy: dict[str, list[Trial]] = {}
    for trial in _measured(sections):
        by_policy.setdefault(_policy(trial), []).append(trial)
    for policy, trials in by_policy.items():
        colour, marker, size = _STYLES.get(policy, _OTHER)
        axes.plot(
            [trial.result["cache_capacity_pct"] for trial in trials],
            [trial.result["cache_hit_pct"] for trial in trials],
            markeredgecolor=colour, marker=marker, markerfacecolor="none", markersize=size, markeredgewidth=2,
            linestyle="none",
            label=f"measured, {policy}",
        )  # fmt: skip
    axes.set_xlabel("capacity (% of the samples)", size=_TEXT_PT + 1)
    axes.set_ylabel("hit rate (% of the samples asked for)", size=_TEXT_PT + 1)
    axes.set(xlim=(0, 102), ylim=(0, 102))
    axes.set_title("Cache hit rate when every epoch is in a new order", size=_TITLE_PT, weight="bold", loc="left")
    axes.tick_params(labelsize=_TEXT_PT)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=_TEXT_PT)
    return figure


def _measured(sections: Sequence[Section]) -> list[Trial]:
    keys = ("cache_capacity_pct", "cache_hit_pct")
    return [t for section in sections for t in section.completed if all(t.number_of(key) is not None for key in keys)]


def _policy(trial: Trial) -> str:
    """Its cache's policy; without one, what was preloaded."""
    config = trial.result.get("config") or {}
    policy = str((config.get("cache") or {}).get("policy", "none"))
    return policy if policy != "none" else f"preload={(config.get('preload') or {}).get('mode')}"
