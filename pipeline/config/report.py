"""What a run shows of itself besides its numbers."""

from dataclasses import dataclass

from pipeline.config.checks import flag


@dataclass(kw_only=True)
class Report:
    """Pictures of a run, in its directory."""

    samples: bool = False
    """`samples.png`, the first training samples as the model gets them."""

    def __post_init__(self) -> None:
        self.samples = flag("report.samples", self.samples)
