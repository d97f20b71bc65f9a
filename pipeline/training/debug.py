"""What is different in a run of `debug=NAME`: its summary says so, and of overfit whether it did."""

from __future__ import annotations

from typing import Any

from pipeline.config import Debug
from pipeline.training.metrics import RunRecord

OVERFIT_LOSS = 0.1
"""In nats: below it the right class has more than 90 % of the probability in the (geometric) mean."""


class DebugRecord(RunRecord):
    """The record of a run to try something out.

    Adds `debug` to the summary, and with `debug: overfit` `did_overfit`: whether the last epoch's training loss is
    below `OVERFIT_LOSS`; None where no epoch was trained.
    """

    def __init__(self, *args: Any, debug: Debug, **options: Any) -> None:
        super().__init__(*args, **options)
        self._debug = debug

    @property
    def did_overfit(self) -> bool | None:
        """Whether the training loss fell to nearly 0; None: there is none to tell by, or nobody asked."""
        if self._debug is not Debug.overfit or not self.rows:
            return None
        return self.rows[-1].train_loss < OVERFIT_LOSS

    def closing_line(self) -> str:
        """What the run has shown, for the terminal."""
        if self._debug is Debug.fast:
            return f"debug=fast: {self.num_steps} steps, an evaluation and the report ran through; scores say nothing"
        if not self.rows:
            return "debug=overfit: no epoch was trained, so it cannot say"
        first, last = self.rows[0].train_loss, self.rows[-1].train_loss
        fell = f"from {first:.3g} to {last:.3g} in {self.num_steps} steps"
        if self.did_overfit:
            return f"debug=overfit: yes, the loss fell {fell}: model, labels and loss fit together"
        return (
            f"debug=overfit: no, the loss went {fell}, not below {OVERFIT_LOSS}: try optim.lr lower and higher,\n"
            "               then more schedule.epochs; if none helps, model, labels and loss do not fit together"
        )

    def _results(self) -> dict[str, Any]:
        told = {"debug": self._debug.value}
        return super()._results() | told | ({} if self._debug is Debug.fast else {"did_overfit": self.did_overfit})
