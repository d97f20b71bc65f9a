"""What one trial prints: its rates beside the references, and what else it cost."""

from __future__ import annotations

import textwrap
from typing import Any

from pipeline.bench.noise import is_known, rate_interval
from pipeline.bench.result import Result, median
from pipeline.config.bench import AUTO
from pipeline.training.tables import WIDTH

_NOT_THERE = "-"


def trial_table(result: Result) -> str:
    """Lines of at most 100 columns, each with its units."""
    lines = [_heading(result), *_rows(result), *_interval(result), "", *_costs(result)]
    for deviation in result["deviations"]:
        lines += _wrapped(f"differs: {deviation}")
    return "\n".join([*lines, ""])


def _heading(result: Result) -> str:
    bench, workers = result["config"]["bench"], result["num_workers"]
    made_by = "no workers" if workers == 0 else "1 worker" if workers == 1 else f"{workers} workers"
    passes = f"{len(result['repeats'])} passes of {bench['batches'] or 'an epoch of'} batches"
    return f"{result['num_samples']:,} images, batches of {result['batch_size']}, {made_by}, {passes}"


def _rows(result: Result) -> list[str]:
    repeats: list[dict[str, Any]] = result["repeats"]
    name = result["contender"]
    lines = [f"{'':22}{'images/s':>12}{'least':>12}{'greatest':>12}{'per CPU-s':>12}{name + ' / it':>18}"]

    def row(label: str, key: str, cpu: float | None = None, *, compares: bool = True) -> None:
        rates = [repeat[key] for repeat in repeats if repeat[key] is not None]
        if not rates:
            return
        ratios = [repeat["samples_per_sec"] / repeat[key] for repeat in repeats if repeat[key] is not None]
        cells = [*(f"{rate:,.0f}" for rate in (median(rates), min(rates), max(rates))), _number(cpu, ",.0f")]
        cells = [f"{cell:>12}" for cell in cells]
        lines.append(f"{label:22}{''.join(cells)}{_number(median(ratios) if compares else None, '.2f'):>18}")

    row(name, "samples_per_sec", result["samples_per_cpu_sec"], compares=False)
    row("  files read cold", "cold_samples_per_sec")
    row("decode ceiling", "decode_ceiling_per_sec")
    row("resident batch", "resident_per_sec")
    return lines


def _interval(result: Result) -> list[str]:
    bench, rates = result["config"]["bench"], [repeat["samples_per_sec"] for repeat in result["repeats"]]
    interval = rate_interval(rates)
    if interval is None:
        return []
    line = (
        f"95 % interval of the rate: {interval.low:,.0f} to {interval.high:,.0f} images/s, "
        f"+-{interval.half_width_pct:.1f} %"
    )
    if bench["repeats"] == AUTO and not is_known(rates, bench["tell_pct"]):
        line += f"; cannot tell {bench['tell_pct']:g} % after {len(rates)} passes"
    return _wrapped(line)


def _costs(result: Result) -> list[str]:
    lines = [
        f"first batch: after {result['first_batch_s']:.2f} s, {result['build_s']:.2f} s of them construction; "
        f"{result['first_batch_from_start_s']:.2f} s after the process began"
    ]
    if result["read_ms"] is not None:
        stages = ", ".join(f"{stage} {result[f'{stage}_ms']:.2f} ms" for stage in ("read", "decode", "transform"))
        lines.append(f"an image: {stages}")
    if result["epoch_gap_s"] is not None:
        gap_ms = 1e3 * max(0.0, result["epoch_gap_s"])  # below 0 it is the noise of two waits
        lines.append(f"between epochs: {gap_ms:.0f} ms more than the usual wait for a batch")
    if result["data_wait_pct"] is not None:
        lines.append(f"training waited for data {result['data_wait_pct']:.1f} % of the time")
    if result["peak_pss_mb"] is not None:
        lines.append(f"memory: {result['peak_pss_mb']:,.0f} MB at most (PSS of all processes)")
    if result["cache_capacity_pct"] is not None:
        lines.append(
            f"cache: {_number(result['cache_hit_pct'], '.1f')} % of the samples, "
            f"{_number(result['cache_bound_pct'], '.1f')} % are possible; "
            f"room for {result['cache_capacity_pct']:.0f} % of the set"
        )
    if result["cold_resident_pct"] is not None:
        lines.append(f"cold: {result['cold_resident_pct']:.1f} % of the files' pages stayed in the page cache")
    lines.append(f"from {result['served_from']}, resize {result['resize']}, {result['layout']}")
    return [part for line in lines for part in _wrapped(line)]


def _number(value: float | None, form: str) -> str:
    return _NOT_THERE if value is None else format(value, form)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ")
