"""`tune=true`: workers, torch's threads and the cache of a run, chosen by a few seconds of measuring."""

from pipeline.training.tuning.tune import apply_tuned, tune

__all__ = ["apply_tuned", "tune"]
