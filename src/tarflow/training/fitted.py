"""What `fit` says of a fit: its curve, its best weights, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """The mean log-likelihood of a row after so many steps, nats.

    Attributes:
        held_out: of held-out rows under the averaged weights. train: of the batches since the last evaluation, each
            under the weights that it met.
    """

    step: int
    held_out: float
    train: float


@dataclass(frozen=True)
class Fit:
    """What fitting came to.

    Attributes:
        held_out_log_prob, standard_error: the mean log-likelihood of a held-out row under the weights that the flow has
            now, nats, and the error of that mean.
        best_step, steps: the step that these weights are of, and how many were taken.
        stopped: why it ended there: "steps", all were taken; "patience", held-out rows were explained no better.
        curve: every evaluation. skipped: steps without a finite gradient, which did not count.
        rows, held_out_rows: how many were learned from and held out. seconds: how long it took.
    """

    held_out_log_prob: float
    standard_error: float
    best_step: int
    steps: int
    stopped: str
    curve: tuple[Evaluation, ...]
    skipped: int
    rows: int
    held_out_rows: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"held-out log-likelihood {self.held_out_log_prob:.4f} ± {self.standard_error:.4f} nats a row at step "
            f"{self.best_step} of {self.steps} (stopped by {self.stopped}), {self.rows} rows, {self.seconds:.0f} s"
        )
