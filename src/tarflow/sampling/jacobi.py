"""Parallel decoding of one block: Gauss-Seidel over windows of patches, Jacobi within a window.

Decoding solves x = inverse(z, params(x)), in which each patch depends on those before it. Jacobi iteration
evaluates all patches of a window at once, from guesses, and again from the result. The system is triangular, so each
iteration makes at least one more patch exact, and usually many more converge. What has converged is frozen: its keys
and values stay in the cache and are never computed again, and the window slides on.

Sources: arXiv 2002.03629; for TarFlow, arXiv 2505.12849 (GS-Jacobi) and 2505.24791. Here the window freezes a
prefix as soon as that prefix has converged, instead of running a number of iterations set by hand.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.fields import integer, real
from tarflow.sampling.solver import Predict, Solution, Solver

LARGEST_GUESS = 1e4
"""Guesses that are fed back are no larger: pixels lie between -1 and 1, latents within 5, and what is larger overflows.

Under a causal mask a later patch counts 0 times its value, which is NaN where that value is infinite."""

SHAPES_IF_NARROW = 8
"""Shapes of windows where the network computes in less than float32: each product rounds in its own way."""


def default_tolerance(dtype: torch.dtype) -> float:
    """What a solution may be off where the network computes in `dtype`.

    1000 times the spacing of numbers at 1: 1.2e-4 in float32, a thirtieth of the step between two of 256 levels. Twice
    the spacing in narrower dtypes, 0.016 in bf16: products of windows of other sizes are rounded in other ways, and
    below that no patch would ever be found to have settled.
    """
    return (1000 if dtype.itemsize >= 4 else 2) * torch.finfo(dtype).eps


@dataclass(frozen=True)
class Jacobi(Solver):
    """Many patches at a time, iterated until they change no more: see `jacobi`. On a GPU small windows are replayed.

    Attributes:
        window: patches evaluated at once; None takes all that are left.
        tol: tolerance, relative to max(1, |x|); None is 1000 times the spacing of numbers at 1, 1.2e-4 in float32, and
            where the network computes in bf16 twice, 0.016.
    """

    window: int | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(self.window, self.tol)

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        dtype = predict.dtype or z.dtype
        shapes = SHAPES_IF_NARROW if dtype.itemsize < 4 else None
        if predict.replay is not None and (windows := predict.replay.windows()) is not None:
            predict, shapes = dataclasses.replace(predict, evaluate=windows), 1
        tol = default_tolerance(dtype) if self.tol is None else self.tol
        return jacobi(predict, z, window=self.window, tol=tol, shapes=shapes)

    def __str__(self) -> str:
        return "jacobi" if self.window is None else f"jacobi {self.window}"


def jacobi(
    predict: Predict,
    z: Tensor,
    *,
    window: int | None = None,
    tol: float | None = None,
    shapes: int | None = None,
) -> Solution:
    """Solve x_i = predict.inverse(z_i, params_i(x_<i)), many patches at a time.

    A patch that enters the window is guessed with the parameters that were predicted for the patch before it; the
    first guess is z. A guess beyond
    `LARGEST_GUESS` is replaced by z: what overflows inside the network would reach patches that do not depend on it. A
    solution may lie there; it is then found when all patches before it are.

    Args:
        predict: the block, as `tarflow.sampling.guidance.predictor` wraps it, with a cache.
        z: (B, T, D), in the block's own order. Not written to.
        window: patches evaluated at once; None is all that are left.
        tol: a patch has converged when one more evaluation changes no number x of it, in no row, by more than
            tol·max(1, |x|). With 0 nothing is frozen before it is exact. None is `default_tolerance`.
        shapes: what has converged is evaluated again with its window, so that windows have no more than about so many
            shapes. None is all shapes that there are, and nothing evaluated for nothing.

    Raises:
        ValueError: a window below 1 or a negative tolerance.
    """
    check_options(window, tol)
    tol = default_tolerance(z.dtype) if tol is None else tol
    last = z.shape[1] - 1
    grain = 1 if shapes is None else window or max(1, -(-last // shapes))  # windows begin at multiples of it
    safe = torch.nan_to_num(z).clamp(-LARGEST_GUESS, LARGEST_GUESS)
    x = torch.cat([z[:, :1], safe[:, 1:]], dim=1)  # the first guess; x_0 = z_0 is exact
    known = 0  # x_0 … x_known are final
    guessed = last if window is None else min(last, window)  # x_1 … x_guessed have a guess
    params: Tensor | None = None  # of the window, as predicted last
    iterations, residual = 0, z.new_zeros(())
    alive = torch.isfinite(x[:, 0]).all(dim=1)  # rows whose final patches are finite
    while known < last:
        begin = known - known % grain
        end = last if window is None else min(last, begin + window)
        if end > guessed:
            entering = slice(guessed + 1, end + 1)
            if params is not None:
                same = params[:, -1:].expand(-1, end - guessed, -1)  # as those of the last patch
                x[:, entering] = _finite_guess(predict.inverse(z[:, entering], same), safe[:, entering])
            guessed = end
        guess = x[:, known + 1 : end + 1]
        params = predict(x[:, begin:end], begin)[:, known - begin :]
        result = predict.inverse(z[:, known + 1 : end + 1], params)
        iterations += 1
        # Guesses at known+1 … end-1 went in; where they come out unchanged they are solutions, and their keys and
        # values in the cache are those of the values kept. The patch after them was computed from solutions alone.
        change = (result - guess).abs() / guess.abs().clamp(min=1)
        # (B, n); a NaN stays one, and has not converged
        change = change.amax(dim=2).masked_fill(~alive.unsqueeze(1), 0)
        worst = change.amax(dim=0)[:-1]
        settled = int((worst <= tol).long().cumprod(dim=0).sum())
        if settled:
            residual = torch.maximum(residual, worst[:settled].amax())
        fresh = result[:, settled:]
        alive = alive & torch.isfinite(fresh[:, 0]).all(dim=1)
        x[:, known + 1 + settled] = fresh[:, 0]
        rest = slice(known + 2 + settled, end + 1)
        x[:, rest] = _finite_guess(fresh[:, 1:], safe[:, rest])
        known += settled + 1
    return Solution(x, iterations, float(residual))


def check_options(window: int | None, tol: float | None) -> None:
    """Raise ValueError unless there is a window of at least one patch and a tolerance of at least 0, or neither."""
    if window is not None:
        integer("window", window, 1)
    if tol is not None:
        real("tol", tol, "0 or more", lambda value: value >= 0)


def _finite_guess(guess: Tensor, safe: Tensor) -> Tensor:
    """The guess where it is a number that the network can stand, else the safe one: NaN is not below anything."""
    return torch.where(guess.abs() <= LARGEST_GUESS, guess, safe)
