"""A report's pictures, measured with a renderer: every text is whole, large enough and clear of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from sweeps import HOST, caches, completed, failed, ladder, many, rates_near, write_sweep

from pipeline.bench.cache_plot import cache_figure, capacities_vary
from pipeline.bench.compare import Section, sections
from pipeline.bench.labels import Labels
from pipeline.bench.plot import throughput_figure
from pipeline.bench.sweep_dir import read_sweeps
from pipeline.cache.theory import lru_hit_rate

MIN_PT = 8.0
TOUCHING_PX = 0.5


def read(*directories: Path) -> tuple[list[Section], Labels]:
    trials = read_sweeps(directories)
    labels = Labels(trials)
    return sections(trials, labels), labels


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a renderer comes to draw, without those of ticks beyond an axis, which exist but are not drawn."""
    drawn: list[Text] = []
    draw = Text.draw

    def note(self: Text, renderer: object, *arguments: object, **options: object) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, renderer, *arguments, **options)

    monkeypatch.setattr(Text, "draw", note)
    figure.canvas.draw()
    monkeypatch.undo()
    return drawn


def check_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Assert that all texts are legible; returns them."""
    texts = drawn_texts(figure, monkeypatch)
    boxes = [(text.get_text(), Text.get_window_extent(text).padded(-TOUCHING_PX)) for text in texts]
    width, height = figure.canvas.get_width_height()
    for text, (said, box) in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= MIN_PT, said
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, f"{said!r} is cut by the edge"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), f"{one!r} and {other!r} overlap"
    return [said for said, _ in boxes]


def wide(directory: Path) -> Path:
    """Values that are all wide letters, cold rates far from the warm ones, and every kind of status."""
    trials = [
        (f"transforms.path={'W' * 60}{i} x.y={'M' * 40}{i}", result)
        for i, result in enumerate(
            [
                completed(rates_near(123_456.0), cold_samples_per_sec=1_234.0, peak_pss_mb=123_456.7),
                completed(rates_near(99_999.0, 3), cold_samples_per_sec=155_000.0, contender="torch"),
                completed(rates_near(7.0, 1), resident_per_sec=150_000.0, peak_pss_mb=None),
                failed("RuntimeError: x"),
                None,
            ]
        )
    ]
    return write_sweep(directory, trials)


def machines(directory: Path) -> Path:
    hosts = [HOST | {"name": f"machine-{i // 2}", "processor": "Extraordinary Processor " * 6} for i in range(6)]
    return write_sweep(directory, [(f"x={i}", completed(rates_near(10.0**i), host=h)) for i, h in enumerate(hosts)])


CASES: dict[str, Callable[[Path], Path]] = {
    "1": lambda directory: many(directory, 1),
    "3 awkward": lambda directory: many(directory, 3, awkward=True),
    "ladder": ladder,
    "ladder of 3 rounds": lambda directory: ladder(directory, num_rounds=3),
    "12": lambda directory: many(directory, 12),
    "12 awkward": lambda directory: many(directory, 12, awkward=True),
    "40": lambda directory: many(directory, 40),
    "40 awkward": lambda directory: many(directory, 40, awkward=True),
    "policies": caches,
    "wide": wide,
    "machines": machines,
}


@pytest.mark.parametrize("case", CASES)
def test_no_text_of_the_throughput_overlaps_another_is_cut_or_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    found, labels = read(CASES[case](tmp_path / "s"))
    figure = throughput_figure(found, labels)
    texts = check_texts(figure, monkeypatch)
    assert texts.count("images per second") == texts.count("peak memory (MB of PSS)") == len(found)
    for section in found:
        for trial in section.trials:
            assert any(text == trial.name or text.startswith(f"{trial.name}  ") for text in texts)
    statuses = [trial.status for section in found for trial in section.trials if not trial.completed]
    assert sorted(statuses) == sorted(text for text in texts if text in ("failed", "skipped", "not run"))


def test_no_text_of_the_cache_picture_overlaps_another_is_cut_or_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = read(caches(tmp_path / "s"))
    texts = check_texts(cache_figure(found), monkeypatch)
    assert {"measured, lru", "measured, pinned", "measured, valued"} <= set(texts)
    assert {"capacity (% of the samples)", "hit rate (% of the samples asked for)"} <= set(texts)


def test_the_cache_picture_has_the_measured_points_and_the_curves_of_theory(tmp_path: Path) -> None:
    found, _ = read(caches(tmp_path / "s"))
    (axes,) = cache_figure(found).axes
    lines = {str(line.get_label()): line.get_xydata() for line in axes.get_lines()}
    by_start = {label.partition(":")[0]: points for label, points in lines.items()}
    assert [tuple(point) for point in by_start["measured, pinned"]] == [
        pytest.approx((c, c - 0.3)) for c in (10, 35, 70)
    ]
    for x, y in by_start["theory, LRU"][::50]:
        assert y == pytest.approx(100 * lru_hit_rate(x / 100))
    assert all(x == pytest.approx(y) for x, y in by_start["theory, pinned"])


def test_there_is_a_cache_picture_only_where_capacities_vary(tmp_path: Path) -> None:
    assert capacities_vary(read(caches(tmp_path / "caches"))[0])
    assert not capacities_vary(read(ladder(tmp_path / "ladder"))[0])


def test_bars_end_at_the_rates_and_error_bars_at_the_interval(tmp_path: Path) -> None:
    rates = [100.0, 104.0, 96.0, 102.0, 98.0, 101.0, 99.0]
    found, labels = read(write_sweep(tmp_path / "s", [("x=0", completed(rates)), ("x=1", completed(rates[:3]))]))
    axes = throughput_figure(found, labels).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [100.0, 100.0]
    ends = [sorted(x for x, _ in path) for path in (c.get_segments()[0] for c in axes.collections)]
    assert ends == [pytest.approx([97.5, 102.5], abs=0.6), pytest.approx([96.0, 104.0])]


def test_the_baseline_is_hatched_and_named_in_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, labels = read(ladder(tmp_path / "s"))
    figure = throughput_figure(found, labels)
    assert [bar.get_hatch() is not None for bar in figure.axes[0].patches] == [True, *[False] * 6]
    assert "the baseline (1x)" in check_texts(figure, monkeypatch)


def test_a_reference_far_from_every_rate_is_told_and_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, labels = read(ladder(tmp_path / "s"))
    figure = throughput_figure(found, labels)
    texts = check_texts(figure, monkeypatch)
    assert "resident batch (what a perfect loader would give): 21,400/s, beyond the axis" in texts
    assert "decode ceiling (the bare decoder, 2 threads): 1,850/s" in texts
    assert figure.axes[0].get_xlim()[1] < 5_000
