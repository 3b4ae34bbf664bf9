"""What the benchmarks of densities known up to their constant share: a reference, trainings, and what they came to.

The reference is annealed importance sampling, which gives log Z with an error, and long Hamiltonian Monte Carlo from
where that ends, which gives rows to train on and others to test on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import tarflow
from benchmarks import kept_rows
from tarflow.inference.chains import effective_sample_size, rhat
from tarflow.inference.weights import Weighted

LogDensity = Callable[[Tensor], Tensor]
Between = Callable[[Tensor, float], Tensor]  # log-density of x (n, d) at a time from 0 to 1
CHECKS = 8  # looks at the held-out rows, evenly over a training; they do not count


class Sampler(Protocol):
    """A density q that is drawn from and scored, both of x (n, d)."""

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


# --- the reference --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What is known of a target without any flow: log Z and its error, rows (N, d) to train on and to test on."""

    log_z: float
    error: float
    train: Tensor
    test: Tensor
    facts: dict[str, float]


def annealed(
    path: Between, start: Tensor, times: Tensor, leapfrog: int, seed: int, pilot: int = 256
) -> tuple[Weighted, float]:
    """Annealed importance sampling (Neal, arXiv physics/9803008): draws with weights, whose mean is Z(1)/Z(0).

    The second is the size of a leapfrog step at the end.

    One step of Hamiltonian Monte Carlo at each time, as long as `pilot` particles found right, which do not count.

    Args:
        path: log-density (n,) of x (n, d) at each time. start: (n, d), exact draws at time 0. times: from 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: list[float] = []
    _anneal(path, start[:pilot], times, leapfrog, generator, sizes, tune=True)
    return _anneal(path, start[pilot:], times, leapfrog, generator, sizes, tune=False), sizes[-1]


def _anneal(
    path: Between,
    x: Tensor,
    times: Tensor,
    leapfrog: int,
    generator: torch.Generator,
    sizes: list[float],
    *,
    tune: bool,
) -> Weighted:
    log_weight, size = x.new_zeros(len(x)), 0.2
    for index, time_ in enumerate(times[1:].tolist()):
        with torch.no_grad():
            log_weight += path(x, time_) - path(x, float(times[index]))
        size = size if tune else sizes[index]
        x, acceptance = _hamiltonian(lambda x, t=time_: path(x, t), x, size, leapfrog, generator)  # type: ignore[misc]
        if tune:
            sizes.append(size)
            size *= math.exp(0.3 * (acceptance - 0.8))
    return Weighted(x, log_weight)


def _hamiltonian(
    log_density: LogDensity, x: Tensor, size: float, leapfrog: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """One step of every particle (n, d), and the share that was accepted."""

    def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = log_density(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    p = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    before, slope = gradient(x)
    energy, y = before - 0.5 * p.square().sum(dim=1), x
    for _ in range(leapfrog):
        p = p + 0.5 * size * slope
        y = y + size * p
        value, slope = gradient(y)
        p = p + 0.5 * size * slope
    change = value - 0.5 * p.square().sum(dim=1) - energy
    taken = torch.rand(len(x), generator=generator, dtype=x.dtype).log() < change
    return torch.where(taken.unsqueeze(1), y, x), float(taken.double().mean())


def reference(
    path: Between,
    start: Tensor,
    *,
    times: Tensor,
    leapfrog: int = 5,
    chains: int = 1024,
    warmup: int = 100,
    steps: int = 200,
    chain_leapfrog: int | None = None,
    thin: int = 2,
    test: float = 0.2,
    seed: int = 0,
) -> Reference:
    """The reference of the density at time 1: the last `test` of the chains are the rows to test on.

    Chains begin where annealing ends, in equilibrium. Warm-up, which moves their steps by where they are, disturbs that
    for as long as they take to forget it; without it their steps are as long as annealing's last ones. Energy and |x|²
    are to mix, and single numbers only where no symmetry exchanges them: the rows are moved by these later.
    """
    drawn, size = annealed(path, start, times, leapfrog, seed)
    log_z = drawn.log_normaliser

    def target(x: Tensor) -> Tensor:
        return path(x, 1.0)

    options: dict[str, Any] = {"steps": steps, "warmup": warmup, "leapfrog": chain_leapfrog}
    found = tarflow.hmc(target, drawn.resampled(chains), step_size=size, seed=seed, **options)
    kept = found.draws[::thin].float()
    split = chains - int(test * chains)
    energies = -torch.stack([target(x) for x in found.draws])  # (steps, chains)
    halves = [float(part.mean()) for part in energies.chunk(2)]
    facts = {
        "log_z": float(log_z.mean),
        "log_z_error": float(log_z.error),
        "annealed_ess": drawn.effective_sample_size / len(drawn.x),
        "acceptance": float(found.acceptance.mean()),
        "rhat_of_the_energy": float(rhat(energies)),
        "rhat_of_the_square": float(rhat(found.draws.square().sum(dim=2))),
        "rhat_worst": float(found.rhat.max()),
        "energy": float(energies.mean()),
        "energy_halves_differ": halves[1] - halves[0],
        "energy_of_the_annealed": float(drawn.expectation(lambda x: -target(x)).mean),
        "energy_of_the_annealed_error": float(drawn.expectation(lambda x: -target(x)).error),
        "chains": chains,
        "steps": steps,
        "rows": kept[:, :split].numel() // kept.shape[2],
    }
    train, held = kept[:, :split].flatten(0, 1), kept[:, split:].flatten(0, 1)
    return Reference(facts["log_z"], facts["log_z_error"], train, held, facts)


# --- training and judging -------------------------------------------------------------------------------------------


def train(parameters: Sequence[nn.Parameter], loss: Callable[[int, float], Tensor], seconds: float, lr: float) -> int:
    """Adam for so much processor time, the rate falling along a cosine: how many steps that were.

    `loss` is of the number of the step, by which it draws, and of the share of the time that is gone.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    began, steps = time.process_time(), 0
    while (gone := (time.process_time() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = lr * min(1, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * gone))
        optimizer.zero_grad()
        loss(steps, gone).backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(parameters, 5.0)):
            optimizer.step()
        steps += 1
    return steps


@torch.no_grad()
def judged(
    sampler: Sampler,
    log_target: LogDensity,
    known: Reference,
    observable: Callable[[Tensor], Tensor],
    draws: int,
    batch: int = 2000,
) -> dict[str, float]:
    """What the draws of a flow are worth, by themselves and by what the chains visited.

    `ess` is of the draws, `ess_of_the_chain` = Z/E_p[p̃/q] of test rows: the same in theory, but only the second knows
    of what the flow leaves out. `kl` is KL(p‖q), nats. `time` is the integrated autocorrelation time of `observable` in
    an independence chain, in its steps.
    """
    batch = min(batch, draws)
    parts = [sampler.sample_and_log_prob(batch, seed=1000 + k) for k in range(draws // batch)]
    x, log_q = (torch.cat(part) for part in zip(*parts, strict=True))
    drawn = Weighted(x, (log_target(x.double()) - log_q.double()))
    log_z = drawn.log_normaliser
    chain = tarflow.independence_metropolis(drawn, chains=4)
    seen = torch.stack([observable(x) for x in chain.draws.double()])
    rows = known.test[torch.randperm(len(known.test), generator=torch.Generator().manual_seed(0))[:draws]]
    log_q = torch.cat([sampler.log_prob(part) for part in rows.split(batch)]).double()
    log_weight = log_target(rows.double()) - log_q
    largest = log_weight.logsumexp(dim=0) - math.log(len(rows))
    return {
        "ess": drawn.effective_sample_size / len(x),
        "ess_of_the_chain": float((known.log_z - largest).exp()),
        "kl": float(log_weight.mean()) - known.log_z,
        "reverse_kl": known.log_z - float(drawn.log_weight.mean()),
        "log_z": float(log_z.mean),
        "log_z_error": float(log_z.error),
        "acceptance": float(chain.acceptance.mean()),
        "time": seen.numel() / float(effective_sample_size(seen)),
    }


# --- files ----------------------------------------------------------------------------------------------------------


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of these benchmarks: those of `kept_rows`, and of how a flow is judged."""
    made = kept_rows.parser(name, doc, seconds=30.0)
    made.add_argument("--draws", type=int, default=8000, help="of each flow, when it is judged")
    made.add_argument("--kept", type=Path, help="a folder where references are kept from one call to the next")
    return made


class References:
    """What is known of targets, found when it is first asked for, and told beside the rows.

    Args:
        folder: where it is kept from one call to the next; None keeps nothing.
    """

    def __init__(self, folder: Path | None, rows: kept_rows.KeptRows) -> None:
        self.folder, self.rows = folder, rows
        self.known: dict[str, Reference] = {}

    def of(self, name: str, make: Callable[[], Reference]) -> Reference:
        """The reference of a target, made where it is neither known nor in the folder."""
        if name not in self.known:
            self.known[name] = self._kept(name, make)
            self.rows.tell(references=self.rows.head.get("references", {}) | {name: self.known[name].facts})
        return self.known[name]

    def _kept(self, name: str, make: Callable[[], Reference]) -> Reference:
        if self.folder is None:
            return make()
        place = self.folder / f"{name}.pt"
        if not place.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(vars(make()), place)
        return Reference(**torch.load(place))

    def said(self) -> str:
        """A line for each target: log Z without a flow."""
        known = self.rows.head.get("references", {}).items()
        return "\n".join(
            f"{name}: log Z = {facts['log_z']:.3f} ± {facts['log_z_error']:.3f} by annealing" for name, facts in known
        )
