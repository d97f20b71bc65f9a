"""What ends a loader whose workers cannot go on."""


class WorkerDiedError(RuntimeError):
    """Worker processes died more often than `loader.max_restarts` allows, or one sample kills whoever makes it."""


class WorkerStalledError(RuntimeError):
    """A sample, or the start of a worker, took longer than `loader.stall_timeout_s`."""
