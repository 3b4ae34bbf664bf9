"""Particles with a known energy: four in a plane with double wells between them, thirteen of Lennard-Jones in space.

    python -m benchmarks.particles --out benchmarks/results/particles-cpu.json

    DW4:    U = Σ_pairs 0.9 (r - 4)⁴ - 4 (r - 4)²  +  ½ |c|²,         N = 4, in 2 dimensions
    LJ13:   U = 2 Σ_pairs r⁻¹² - 2 r⁻⁶  +  ½ Σ_i |x_i - c|²  +  13/2 |c|²,    N = 13, in 3 dimensions

at temperature 1, as in arXiv 2006.02425. Formulas of LJ13 in print count each pair once, which leaves a gas; the data
that flows have been compared on (arXiv 2306.15030, 2402.06121) are of the twofold energy above, a cluster. The last
term ties the centre of mass c to the origin, so that there is a density of all coordinates; it is independent of the
rest. Of LJ13 it makes the oscillator one about the origin.

U does not know which particle is which, or how all of them are turned. A flow with particles as tokens has to learn
that. Each kind of coordinates here is a change of variables, so that all have one log Z:

- as they are: particles and axes are permuted, turned and reflected at random for each batch;
- sorted by the first coordinate, where only that order has a density, N! of the other;
- gaps: sorted, with the logarithm of the difference to the particle before as first coordinate: all draws are sorted;
- frame (DW4): relative to particle 1, with particle 2 on the axis, and so without rotations.

Beside `SequenceFlow` is zuko's neural spline flow (the extra `[sbi]`) on the same numbers, for the same processor time.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tarflow
from benchmarks.boltzmann import Reference, References, Sampler, judged, parser, reference, train
from benchmarks.kept_rows import KeptRows, Row, spread
from benchmarks.table import aligned

BATCH = 256
RATE = 3e-3
SOFT = 0.5  # how far the core of Lennard-Jones is rounded off where annealing begins


@dataclass(frozen=True)
class System:
    """N particles in so many dimensions; `tie` is that of the centre of mass, ½ tie N |c|²."""

    name: str
    particles: int
    dims: int
    tie: float
    width: float  # of the Gaussians from which annealing begins
    coordinates: tuple[str, ...]
    temperatures: int
    annealed: int  # so many of the whole system at once
    chains: Mapping[str, int]  # what `boltzmann.reference` is asked for of them

    @property
    def dim(self) -> int:
        return self.particles * self.dims


DW4 = {"chains": 1024, "warmup": 100, "leapfrog": 4}
LJ13 = {"chains": 128, "warmup": 0, "steps": 1500, "thin": 10, "leapfrog": 4, "chain_leapfrog": 12}
SYSTEMS = {
    "DW4": System("DW4", 4, 2, 0.25, 2.5, ("as they are", "sorted", "gaps", "frame"), 512, 4096, DW4),
    "LJ13": System("LJ13", 13, 3, 1.0, 1.0, ("as they are", "sorted", "gaps"), 512, 1024, LJ13),
}


# --- energies -------------------------------------------------------------------------------------------------------


def squared_distances(x: Tensor, system: System) -> Tensor:
    """Of each pair once, (n, N(N-1)/2), of x (n, N·d)."""
    x = x.unflatten(1, (system.particles, system.dims))
    first, second = torch.triu_indices(system.particles, system.particles, 1)
    return (x[:, first] - x[:, second]).square().sum(dim=2)


def energy(x: Tensor, system: System, time_: float = 1.0) -> Tensor:
    """U (n,) of x (n, N·d); Lennard-Jones at an earlier time has a soft core, and less depth."""
    square, centre = squared_distances(x, system), x.unflatten(1, (system.particles, system.dims)).mean(dim=1)
    tied = 0.5 * system.tie * system.particles * centre.square().sum(dim=1)
    if system.name == "DW4":
        away = (square.clamp(min=1e-12).sqrt() - 4).square()
        return time_ * ((0.9 * away.square() - 4 * away).sum(dim=1) + tied)
    core = square**3 + SOFT * (1 - time_)
    return time_ * 2 * (core**-2 - 2 / core).sum(dim=1) + 0.5 * x.square().sum(dim=1)


def path(system: System) -> Callable[[Tensor, float], Tensor]:
    """From independent Gaussians at time 0, normalised, to exp(-U) at time 1."""

    def log_density(x: Tensor, time_: float) -> Tensor:
        constant = (1 - time_) * system.dim * math.log(system.width * math.sqrt(2 * math.pi))
        gaussian = 0.0 if system.name == "LJ13" else (time_ - 1) * 0.5 * (x / system.width).square().sum(dim=1)
        return gaussian - constant - energy(x, system, time_)

    return log_density


def known_of(system: System, **options: Any) -> Reference:
    """log Z and rows of a system, without a flow."""
    generator = torch.Generator().manual_seed(system.dim)
    start = system.width * torch.randn(system.annealed + 256, system.dim, generator=generator, dtype=torch.float64)
    times = 1 - torch.linspace(1, 0, system.temperatures + 1, dtype=torch.float64) ** 2  # closer together at the end
    return reference(path(system), start, times=times, **dict(system.chains) | options)


# --- coordinates ----------------------------------------------------------------------------------------------------


class Coordinates:
    """x (n, N·d) as numbers v (n, k) that a flow is given, and log p̃ of v.

    Args:
        kind: one of those of the system.
    """

    def __init__(self, kind: str, system: System) -> None:
        self.kind, self.system = kind, system
        self.frame = kind == "frame"
        self.numbers = system.dim - 3 if self.frame else system.dim
        self.tokens = self.numbers if self.frame else system.particles
        self.orders = ("random:1", "random:2") if kind == "as they are" else ()  # none is better; else raster and back

    def encode(self, x: Tensor) -> Tensor:
        """v of x."""
        particles = x.unflatten(1, (self.system.particles, self.system.dims))
        if self.frame:
            relative = particles[:, 1:] - particles[:, :1]
            length = relative[:, 0].norm(dim=1)
            axis = relative[:, 0] / length.unsqueeze(1)
            across = torch.stack([-axis[:, 1], axis[:, 0]], dim=1)
            turned = torch.einsum("npd,nkd->npk", relative[:, 1:], torch.stack([axis, across], dim=1))
            return torch.cat([length.log().unsqueeze(1), turned.flatten(1)], dim=1)
        if self.kind == "as they are":
            return x
        order = particles[:, :, :1].argsort(dim=1)
        particles = torch.take_along_dim(particles, order, dim=1)
        if self.kind == "gaps":
            first = particles[:, :, 0]
            gaps = first.diff(dim=1).clamp(min=torch.finfo(x.dtype).tiny).log()
            particles = torch.cat([torch.cat([first[:, :1], gaps], dim=1).unsqueeze(2), particles[:, :, 1:]], dim=2)
        return particles.flatten(1)

    def log_target(self, v: Tensor) -> Tensor:
        """log p̃ (n,) of v (n, k): its integral is that of exp(-U) over all x."""
        system, log_orders = self.system, math.lgamma(self.system.particles + 1)
        if self.frame:
            length = v[:, :1].exp()
            centred = torch.cat([torch.zeros_like(v[:, :2]), length, torch.zeros_like(length), v[:, 1:]], dim=1)
            centred = centred.unflatten(1, (system.particles, system.dims))
            centred = (centred - centred.mean(dim=1, keepdim=True)).flatten(1)
            tied = math.log(2 * math.pi / (system.tie * system.particles))  # of two dimensions
            return -energy(centred, system) + 2 * v[:, 0] + math.log(2 * math.pi) + tied
        if self.kind == "as they are":
            return -energy(v, system)
        tokens = v.unflatten(1, (system.particles, system.dims))
        if self.kind == "gaps":
            first = torch.cat([tokens[:, :1, 0], tokens[:, 1:, 0].exp()], dim=1).cumsum(dim=1)
            x = torch.cat([first.unsqueeze(2), tokens[:, :, 1:]], dim=2).flatten(1)
            log_p = log_orders + tokens[:, 1:, 0].sum(dim=1) - energy(x, system)
            return torch.where(log_p.isfinite(), log_p, -torch.inf)  # gaps that overflow, or of no width
        sorted_ = (tokens[:, 1:, 0] > tokens[:, :-1, 0]).all(dim=1)
        return torch.where(sorted_, log_orders - energy(v, system), -torch.inf)


def moved(x: Tensor, system: System, generator: torch.Generator) -> Tensor:
    """x (n, N·d) with particles permuted, each row in its own way, turned and reflected at random, all rows alike."""
    order = torch.rand(len(x), system.particles, 1, generator=generator).argsort(dim=1)
    particles = torch.take_along_dim(x.unflatten(1, (system.particles, system.dims)), order, dim=1)
    turn, triangle = torch.linalg.qr(torch.randn(len(x), system.dims, system.dims, generator=generator))
    return (particles @ (turn * triangle.diagonal(dim1=1, dim2=2).sign().unsqueeze(1))).flatten(1)


# --- flows ----------------------------------------------------------------------------------------------------------


class Flow:
    """A `VectorFlow` on v, whose tokens are particles, or single numbers of a frame: two blocks of two layers."""

    def __init__(self, coordinates: Coordinates, rows: Tensor) -> None:
        width = 32 if coordinates.numbers < 10 else 64
        self.module = tarflow.VectorFlow(
            coordinates.numbers, coordinates.tokens, width=width, layers=(2, 2), bins=16, orders=coordinates.orders
        )
        self.module.event.fit(rows)

    def log_prob(self, v: Tensor) -> Tensor:
        return self.module.log_prob(v)

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        return self.module.sample_and_log_prob(n, seed=seed)


class SplineFlow:
    """zuko's neural spline flow on v, standardised."""

    def __init__(self, coordinates: Coordinates, rows: Tensor) -> None:
        import zuko  # type: ignore[import-untyped, import-not-found, unused-ignore]

        self.module: nn.Module = zuko.flows.NSF(coordinates.numbers, hidden_features=(128, 128))
        self.deviation, self.mean = torch.std_mean(rows, dim=0)

    def log_prob(self, v: Tensor) -> Tensor:
        found: Tensor = self.module().log_prob((v - self.mean) / self.deviation)
        return found - self.deviation.log().sum()

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            z, log_q = self.module().rsample_and_log_prob((n,))
        return z * self.deviation + self.mean, log_q - self.deviation.log().sum()


FLOWS: dict[str, Callable[[Coordinates, Tensor], Any]] = {"tarflow": Flow, "zuko NSF": SplineFlow}


class Averaged:
    """q averaged over the orders of the particles, of which there must be few: drawn in a random one."""

    def __init__(self, sampler: Sampler, system: System) -> None:
        self.sampler, self.system = sampler, system
        self.orders = torch.cartesian_prod(*[torch.arange(system.particles)] * system.particles)
        self.orders = self.orders[self.orders.sort(dim=1).values.diff(dim=1).all(dim=1)]

    def log_prob(self, x: Tensor) -> Tensor:
        particles = x.unflatten(1, (self.system.particles, self.system.dims))
        found = [self.sampler.log_prob(particles[:, order].flatten(1)) for order in self.orders]
        return torch.stack(found).logsumexp(dim=0) - math.log(len(self.orders))

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        x = self.sampler.sample_and_log_prob(n, seed=seed)[0]  # its order is as good as any: the energy is even
        return x, self.log_prob(x)


def measure(system: System, kind: str, flow: str, known: Reference, seed: int, seconds: float, draws: int) -> list[Row]:
    """One training, and what its flow is worth; twice where its density is averaged, too."""
    coordinates = Coordinates(kind, system)
    rows = torch.Generator().manual_seed(seed)

    def batch(n: int) -> Tensor:
        chosen = torch.randint(len(known.train), (n,), generator=rows)
        return coordinates.encode(moved(known.train[chosen], system, rows))

    torch.manual_seed(seed)
    sampler = FLOWS[flow](coordinates, batch(5000))
    parameters = list(sampler.module.parameters())
    steps = train(parameters, lambda step, gone: -sampler.log_prob(batch(BATCH)).mean(), seconds, RATE)
    test = coordinates.encode(moved(known.test, system, torch.Generator().manual_seed(0)))
    known = Reference(known.log_z, known.error, known.train, test, known.facts)
    row = {"system": system.name, "coordinates": kind, "flow": flow, "seed": seed}
    row |= {"weights": sum(p.numel() for p in parameters), "steps": steps}
    samplers: dict[str, Sampler] = {"no": sampler}
    if kind == "as they are" and system.particles < 6:
        samplers["yes"] = Averaged(sampler, system)
    found = []
    for averaged, each in samplers.items():
        began = time.process_time()
        worth = judged(each, coordinates.log_target, known, coordinates.log_target, draws)
        found.append(row | {"averaged": averaged} | worth | {"seconds_to_judge": time.process_time() - began})
    return found


def table(kept: Sequence[Row]) -> str:
    """A line a system, coordinates and flow: mean over the seeds, and the deviation of one."""
    lines = [["system, coordinates, flow", "steps", "ESS %", "by the chain %", "KL(p|q)", "log Z", "error", "accepted"]]
    parts = ("system", "coordinates", "flow", "averaged")
    for key in dict.fromkeys(tuple(row[part] for part in parts) for row in kept):
        rows = [row for row in kept if tuple(row[part] for part in parts) == key]
        said = f"{key[0]} {key[1]}{', averaged' * (key[3] == 'yes')}: {key[2]}"
        cells = [spread([row["steps"] for row in rows], 0)]
        cells += [spread([100 * row[name] for row in rows], 2) for name in ("ess", "ess_of_the_chain")]
        cells += [spread([row[name] for row in rows], 2) for name in ("kl", "log_z")]
        cells += [f"{max(row['log_z_error'] for row in rows):.2f}", spread([row["acceptance"] for row in rows])]
        lines.append([said, *cells])
    return aligned(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet, write it row by row, and print."""
    words = parser("particles", __doc__)
    words.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    words.add_argument("--coordinates", nargs="+", help="all of the system's where not given")
    words.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    args = words.parse_args(argv)
    torch.set_num_threads(1)
    kept = KeptRows("particles", args.out, {"seconds": args.seconds, "draws": args.draws})
    references = References(args.kept, kept)
    for name in args.systems:
        system = SYSTEMS[name]
        for seed, kind, flow in itertools.product(args.seeds, args.coordinates or system.coordinates, args.flows):
            if kept.found({"system": name, "coordinates": kind, "flow": flow, "seed": seed}) is None:
                known = references.of(name, lambda s=system: known_of(s))  # type: ignore[misc]
                for row in measure(system, kind, flow, known, seed, args.seconds, args.draws):
                    kept.add(row)
    print(table(kept.rows), references.said(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
