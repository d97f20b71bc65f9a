"""All checks, in the order of their lines."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import TrainConfig
from pipeline.doctor.finding import Finding, error, guarded, in_words, warning
from pipeline.doctor.machine import check_cores, check_open_files
from pipeline.doctor.packages import check_cv2, check_decoders, check_versions


def examine(cfg: TrainConfig) -> Iterator[Finding]:
    """What a run of `cfg` would meet here. Generates and downloads nothing, writes nothing."""
    yield from guarded("cores", check_cores, cfg)
    yield from guarded("cv2", check_cv2)
    yield from guarded("decoder", check_decoders)
    yield from guarded("versions", check_versions)
    # Not above: they take torch's two seconds, which the first lines need not wait for.
    from pipeline.doctor.data import check_data
    from pipeline.doctor.gpu import check_gpu
    from pipeline.doctor.plan import plan_run

    try:
        plan = plan_run(cfg)
    except Exception as raised:
        yield error("run", in_words(raised))
        yield warning("data", "not looked at, for the run could not be planned; see the error above")
        return
    yield from guarded("GPU", check_gpu, plan)
    yield from guarded("open files", check_open_files, plan)
    yield from guarded("data", check_data, plan)
