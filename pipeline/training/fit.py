"""The epochs of a run: train, evaluate, record, save; and where it stops when it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.build import Pipeline
from pipeline.config import TrainConfig
from pipeline.stalls import OVERHEAD, RANKS, SAVING
from pipeline.training.bad import agree_on_bad
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.evaluate import evaluate
from pipeline.training.learner import Learner
from pipeline.training.loggers import Loggers
from pipeline.training.loop import Totals, train_epoch
from pipeline.training.metrics import RunRecord
from pipeline.training.progress import Progress
from pipeline.training.replacing import discard_partial
from pipeline.training.resume import LAST
from pipeline.training.samples_sheet import SamplesSheet
from pipeline.training.sizes import last_of_size, size_at
from pipeline.training.stall_watch import StallWatch
from pipeline.training.state import restore, take_state
from pipeline.training.stopping import RunError, Stopped, StopSignals

BEST = LAST.with_name("best.pt")


def _of_epoch(epoch: int) -> Path:
    return LAST.with_name(f"epoch-{epoch}.pt")


@dataclass(slots=True, kw_only=True)
class Fit:
    """The parts of a run, at its beginning or as a checkpoint left them.

    `unfinished` are the totals of the epoch after the record's last row, as far as it was trained; None: not at all.
    `sheet` is the contact sheet that is still to be made. `train_pipeline` has images as large as those of the epoch
    that is to be trained first, or as those of the state that `go_on` takes.
    """

    cfg: TrainConfig
    learner: Learner
    train_pipeline: Pipeline
    val_pipeline: Pipeline
    record: RunRecord
    stop: StopSignals
    run_dir: Path
    stalls: StallWatch
    sheet: SamplesSheet | None = None
    unfinished: Totals | None = None

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Takes the place of the run that left the state `earlier`; `record` has done so already.

        Raises:
            ConfigError: the data is not what that run was trained on.
        """
        restore(earlier, self.learner, self.train_pipeline)
        if self.learner.world.is_first:
            discard_partial((self.run_dir / LAST).parent)
        if earlier["unfinished"] is not None:
            self.unfinished = Totals(**earlier["unfinished"])
            if self.learner.num_steps % self.cfg.logger.every_steps == 0:
                # Told before the checkpoint, and dropped since: the epoch's row may stand at this step too.
                self.record.loggers.step(self.learner.num_steps, self.unfinished)

    def run(self) -> None:
        """Runs the epochs that are left.

        Raises:
            Stopped: a signal came; `checkpoints/last.pt` is of the step it names.
            RunError: the loss is not finite, or a checkpoint could not be saved.
        """
        num_epochs = self.cfg.schedule.epochs
        progress = Progress(sys.stderr if self.learner.world.is_first else None, num_epochs=num_epochs)
        for epoch in range(len(self.record.rows) + 1, num_epochs + 1):
            self._run_epoch(epoch, progress)
            if self.record.status == "stopped":
                return
            if epoch < num_epochs:  # a run that is complete has nothing to stop
                self.stop.check(step=self.learner.num_steps)

    def _run_epoch(self, epoch: int, progress: Progress) -> None:
        trained = self._train(epoch, progress)
        agree_on_bad(self.train_pipeline, self.learner.world)
        is_last = epoch == self.cfg.schedule.epochs
        is_cut = self._is_at_max_steps and not (is_last and self._is_whole(trained))
        # What to go on from if this epoch gets no row, or one that a run with more steps would not have.
        pending = self._state(epoch, unfinished=trained)
        evaluation = None
        try:
            self.stop.check()
            if is_last or is_cut or epoch % self.cfg.run.eval_every == 0:
                evaluation = evaluate(
                    self.learner.evaluated,
                    self.stop.checked(self.val_pipeline),
                    compute=self.learner.compute,
                    world=self.learner.world,
                )
                agree_on_bad(self.val_pipeline, self.learner.world)
        except Stopped as stopped:
            self._save(LAST, pending)
            stopped.step = self.learner.num_steps
            raise
        best_top1 = self.record.best_top1
        progress.end_epoch(self.record.add_epoch(step=self.learner.num_steps, trained=trained, evaluation=evaluation))
        state = pending if is_cut else self._state(epoch)
        if evaluation is not None:
            state["top1"] = evaluation.top1
            if best_top1 is None or evaluation.top1 > best_top1:
                self._save(BEST, state)  # before the last: a run killed in between evaluates again, and saves both
            self._keep_top(epoch, state)
        self._save(LAST, state)
        if is_cut:
            self.record.status = "stopped"

    def _keep_top(self, epoch: int, state: dict[str, Any]) -> None:
        """Saves the epoch if it is among the best, and drops the one that no longer is; the earlier wins a tie."""
        if self.cfg.run.keep_top == 0:
            return
        evaluated = [row for row in self.record.rows if row.eval_top1 is not None]
        best = sorted(evaluated, key=lambda row: (-(row.eval_top1 or 0.0), row.epoch))[: self.cfg.run.keep_top]
        top = [row.epoch for row in best]
        if epoch in top:
            self._save(_of_epoch(epoch), state)
        if self.learner.world.is_first:
            for row in evaluated:
                if row.epoch not in top:
                    (self.run_dir / _of_epoch(row.epoch)).unlink(missing_ok=True)

    def _train(self, epoch: int, progress: Progress) -> Totals:
        """Trains what is left of `epoch`, or of the run's steps, or what can be done before a signal."""
        earlier, self.unfinished = self.unfinished, None
        if earlier is not None and (self._is_whole(earlier) or self._is_at_max_steps):
            return earlier

        def after_batch(totals: Callable[[], Totals]) -> bool:
            if self.sheet is not None and self.sheet.is_full:
                self._draw_sheet()
            spent.lap(OVERHEAD)
            is_asked = self.stop.is_asked
            spent.lap(RANKS)
            if is_asked or self._is_at_max_steps:
                return True
            if self._is_time_to_save:
                state = self._state(epoch, unfinished=totals())
                self._save(LAST, state)
                spent.lap(SAVING)
            return False

        self._change_size(epoch)
        num_done = earlier.num_batches if earlier is not None else 0
        progress.start_epoch(epoch, num_batches=len(self.train_pipeline), num_done=num_done)
        spent = self.stalls.begin()
        try:
            trained = train_epoch(
                self.learner,
                self.train_pipeline if self.sheet is None else self.sheet.watch(self.train_pipeline, epoch=epoch),
                observer=_Observers(progress, self.record.loggers, self.learner),
                every_steps=self.cfg.logger.every_steps,
                earlier=earlier,
                after_batch=after_batch,
                spent=spent,
            )
        finally:
            progress.close()
        self.stalls.end(spent)
        self._draw_sheet()  # of a short epoch, or of one that was cut short
        return trained

    def _change_size(self, epoch: int) -> None:
        """Has training images as large as `epoch` is to have them."""
        size = size_at(self.cfg, epoch)
        if self.cfg.schedule.sizes is not None and size != self.train_pipeline.transforms.size:
            self.train_pipeline.change_size(size, num_epochs=last_of_size(self.cfg, epoch))

    def _draw_sheet(self) -> None:
        if self.sheet is not None:
            self.sheet.draw()
            self.sheet = None

    def _is_whole(self, trained: Totals) -> bool:
        return trained.num_batches == len(self.train_pipeline)

    @property
    def _is_at_max_steps(self) -> bool:
        return self.learner.num_steps == self.cfg.run.max_steps

    @property
    def _is_time_to_save(self) -> bool:
        every_steps = self.cfg.run.save_every_steps
        return every_steps is not None and self.learner.num_steps % every_steps == 0

    def _state(self, epoch: int, *, unfinished: Totals | None = None) -> dict[str, Any]:
        self.record.num_steps = self.learner.num_steps
        return take_state(self.cfg, self.learner, self.train_pipeline, self.record, epoch=epoch, unfinished=unfinished)

    def _save(self, name: Path, state: dict[str, Any]) -> None:
        if self.learner.world.is_first:
            try:
                save_checkpoint(self.run_dir / name, state)
            except OSError as error:
                left = "what was saved before it is whole: make room, and continue the run with resume"
                if not (self.run_dir / LAST).exists():
                    left = "there is no checkpoint to continue from yet: make room, and begin the run again"
                raise RunError(f"{self.run_dir / name} could not be saved ({error.strerror}); {left}") from error
        self.learner.world.wait()  # a rank that ends has the others ended, who may be saving still


@dataclass(frozen=True, slots=True)
class _Observers:
    """An `Observer` that tells whoever watches the terminal, and the loggers."""

    progress: Progress
    loggers: Loggers
    learner: Learner

    def advance(self) -> None:
        self.progress.advance()

    def show(self, totals: Totals) -> None:
        self.progress.show(totals)
        self.loggers.step(self.learner.num_steps, totals)
