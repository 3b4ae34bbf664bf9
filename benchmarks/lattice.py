"""Scalar φ⁴ theory on a lattice: flows trained on a Markov chain, on the action alone, and on both.

    python -m benchmarks.lattice --out benchmarks/results/lattice-cpu.json

The action is that of arXiv 1904.12072 on a periodic square, with the couplings of its tutorial (arXiv 2101.08176),
m² = -4 and λ = 8, in the symmetric phase:

    S(φ) = Σ_x (m² + 4) φ_x² - 2 φ_x (φ_x+1 + φ_x+L) + λ φ_x⁴

Each row of the lattice is a token, whose numbers a `VectorFlow` mixes by a triangular matrix and bends by splines one
after the other. Beside it is what the field uses: affine couplings with checkerboard masks and small periodic
convolutions, 16 of them, as in that tutorial. All are trained for the same processor time, on one core, by

- likelihood of what a long chain visited, shifted and reflected at random, which costs nothing;
- reverse KL, of the action alone. Ours is then run in its other direction, `flow.inverse()`;
- both: likelihood for half of the time, then both in equal parts (`tarflow.mixed_kl`), of the flow itself, whose decode
  is differentiated.

The density of all of them is averaged over φ and -φ when it is done: (q(φ) + q(-φ))/2. The reference is annealed
importance sampling and Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import tarflow
from benchmarks.boltzmann import Reference, References, Sampler, judged, parser, reference, train
from benchmarks.kept_rows import KeptRows, Row, spread
from benchmarks.table import aligned

MASS, COUPLING = -4.0, 8.0  # m² and λ
WIDTH = 0.5  # deviation of the independent Gaussians from which annealing begins
BATCHES = {"tarflow": 256, "RealNVP": 64}  # a step of so many couplings takes longer
MIXED_BATCH = 64  # draws of reverse KL, where there is likelihood, too
LIKELIHOOD_FIRST = 0.5  # the share of the time before reverse KL is mixed in, as its steps take five times as long
RATES = {"tarflow": 3e-3, "RealNVP": 1e-2}  # for couplings 2e-3 was worse
SIZES: dict[str, dict[str, Any]] = {  # tokens, and what else a flow of that lattice is made with
    "8x8": {"side": 8, "flow": {"width": 64, "layers": (1, 1, 1)}, "temperatures": 256, "annealed": 4096},
    "16x16": {"side": 16, "flow": {"width": 96, "layers": (1, 1, 1)}, "temperatures": 512, "annealed": 1024},
}
METHODS = ("tarflow, likelihood", "tarflow, reverse KL", "tarflow, both", "RealNVP, likelihood", "RealNVP, reverse KL")


def action(x: Tensor, side: int) -> Tensor:
    """S(φ) (n,) of x (n, side²), in raster order."""
    phi = x.unflatten(1, (side, side))
    neighbours = phi.roll(1, dims=1) + phi.roll(1, dims=2)
    square = phi.square()
    return ((MASS + 4) * square - 2 * phi * neighbours + COUPLING * square.square()).sum(dim=(1, 2))


def path(side: int) -> Callable[[Tensor, float], Tensor]:
    """From independent Gaussians at time 0, normalised, to exp(-S) at time 1."""

    def log_density(x: Tensor, time_: float) -> Tensor:
        gaussian = -0.5 * (x / WIDTH).square().sum(dim=1) - side**2 * math.log(WIDTH * math.sqrt(2 * math.pi))
        return (1 - time_) * gaussian - time_ * action(x, side)

    return log_density


def known_of(side: int, temperatures: int, annealed: int, **options: Any) -> Reference:
    """log Z and rows of a lattice, without a flow."""
    generator = torch.Generator().manual_seed(side)
    start = WIDTH * torch.randn(annealed + 256, side**2, generator=generator, dtype=torch.float64)
    times = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)
    return reference(path(side), start, times=times, leapfrog=3, chains=512, **options)


# --- flows ----------------------------------------------------------------------------------------------------------


class Even:
    """(q(x) + q(-x))/2 of another density q: drawn with a sign, and as even as the action is."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logaddexp(self.sampler.log_prob(x), self.sampler.log_prob(-x)) - math.log(2)

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        x, log_q = self.sampler.sample_and_log_prob(n, seed=seed)
        other = self.sampler.log_prob(-x)
        signs = torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return signs * x, torch.logaddexp(log_q, other) - math.log(2)


class RealNVP(nn.Module):
    """Affine couplings of one half of a checkerboard given the other, x·exp(s) + t, in turn.

    s and t are two channels of three periodic 3x3 convolutions with `hidden` channels between them, tanh behind the
    last, times a learned number each.
    """

    frozen: Tensor

    def __init__(self, side: int, couplings: int = 16, hidden: int = 8) -> None:
        super().__init__()
        self.side = side
        checkers = torch.arange(side).view(-1, 1) + torch.arange(side)
        self.register_buffer("frozen", torch.stack([checkers % 2 == k % 2 for k in range(couplings)]).float())
        self.nets = nn.ModuleList(self._net(hidden) for _ in range(couplings))
        self.scales = nn.Parameter(torch.ones(couplings, 2, 1, 1) * 0.1)
        self.log_width = nn.Parameter(torch.tensor(math.log(WIDTH)))  # of the field, as ours is standardised

    @staticmethod
    def _net(hidden: int) -> nn.Module:
        def convolution(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 3, padding=1, padding_mode="circular")

        return nn.Sequential(
            *(convolution(1, hidden), nn.LeakyReLU(), convolution(hidden, hidden), nn.LeakyReLU()),
            *(convolution(hidden, 2), nn.Tanh()),
        )

    def _parts(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        frozen = self.frozen[index]
        made = self.nets[index]((x * frozen).unsqueeze(1)) * self.scales[index] * (1 - frozen)
        return made[:, 0], made[:, 1]

    def rsample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, self.side, self.side, generator=torch.Generator().manual_seed(seed))
        x, log_q = z * self.log_width.exp(), _normal(z) - self.side**2 * self.log_width
        for index in range(len(self.nets)):
            s, t = self._parts(x, index)
            x, log_q = x * s.exp() + t, log_q - s.sum(dim=(1, 2))
        return x.flatten(1), log_q

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.rsample_and_log_prob(n, seed=seed)

    def log_prob(self, x: Tensor) -> Tensor:
        z, ladj = x.unflatten(1, (self.side, self.side)), x.new_zeros(len(x))
        for index in reversed(range(len(self.nets))):
            s, t = self._parts(z, index)
            z, ladj = (z - t) * (-s).exp(), ladj - s.sum(dim=(1, 2))
        return _normal(z * (-self.log_width).exp()) + ladj - self.side**2 * self.log_width


def _normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=(1, 2))


def make(side: int, **fields: Any) -> tarflow.VectorFlow:
    """A flow of the lattice's rows."""
    made: dict[str, Any] = {"tokens": side, "transform": "spline-by-number-mixed"}
    return tarflow.VectorFlow(side**2, **made | fields)


def trained(method: str, name: str, known: Reference, seed: int, seconds: float) -> tuple[Sampler, dict[str, Any]]:
    """A flow, trained, and how much of it there is."""
    side = SIZES[name]["side"]
    kind, objective = method.split(", ")
    size = BATCHES[kind]
    torch.manual_seed(seed)
    flow: Any = RealNVP(side) if kind == "RealNVP" else make(side, **SIZES[name]["flow"])
    if kind == "tarflow":
        flow.event.fit(known.train)
    rows = torch.Generator().manual_seed(seed)

    def log_target(x: Tensor) -> Tensor:
        return -action(x, side)

    def batch(n: int) -> Tensor:
        x = known.train[torch.randint(len(known.train), (n,), generator=rows)].unflatten(1, (side, side))
        shift, turns = torch.randint(side, (2,), generator=rows).tolist(), int(torch.randint(8, (), generator=rows))
        x = x.roll(shift, dims=(1, 2)) * (1 - 2 * torch.randint(0, 2, (n, 1, 1), generator=rows))
        x = x.mT if turns & 1 else x
        return x.flip([axis + 1 for axis in (0, 1) if turns >> axis + 1 & 1]).flatten(1)

    q: Any = flow.inverse() if method == "tarflow, reverse KL" else flow

    def loss(step: int, gone: float) -> Tensor:
        if objective == "likelihood":
            return -q.log_prob(batch(size)).mean()
        draw = seed + 1_000_003 * (step + 1)
        if objective == "both":
            if gone < LIKELIHOOD_FIRST:
                return -q.log_prob(batch(size)).mean()
            return tarflow.mixed_kl(q, log_target, batch(size), MIXED_BATCH, seed=draw)
        if kind == "tarflow":
            return tarflow.reverse_kl(q, log_target, size, seed=draw)
        x, log_q = q.rsample_and_log_prob(size, seed=draw)
        return (log_q - log_target(x)).mean()

    steps = train(list(flow.parameters()), loss, seconds, RATES[kind])
    return Even(q), {"weights": sum(p.numel() for p in flow.parameters()), "steps": steps}


def measure(references: References, lattice: str, method: str, seed: int, seconds: float, draws: int) -> Row:
    """One training, and what its flow is worth."""
    size = SIZES[lattice]
    side = size["side"]
    known = references.of(lattice, lambda: known_of(side, size["temperatures"], size["annealed"]))
    sampler, facts = trained(method, lattice, known, seed, seconds)
    began = time.process_time()
    found = judged(sampler, lambda x: -action(x, side), known, lambda x: x.mean(dim=1).square(), draws)
    return facts | found | {"seconds_to_judge": time.process_time() - began}


def table(kept: Sequence[Row]) -> str:
    """A line a lattice and method: mean over the seeds, and the deviation of one."""
    lines = [["lattice, method", "steps", "ESS", "ESS by the chain", "KL(p|q)", "log Z", "error", "acceptance", "time"]]
    for name in SIZES:
        for method in METHODS:
            rows = [row for row in kept if (row["lattice"], row["method"]) == (name, method)]
            if rows:
                values = {key: [row[key] for row in rows] for key in rows[0]}
                keys = ("ess", "ess_of_the_chain", "kl", "log_z")
                cells = [spread(values[key]) for key in keys] + [f"{max(values['log_z_error']):.3f}"]
                cells += [spread(values["acceptance"], 2), spread(values["time"], 1)]
                lines.append([f"{name} {method}", spread(values["steps"], 0), *cells])
    return aligned(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet, write it row by row, and print."""
    words = parser("lattice", __doc__)
    words.add_argument("--lattices", nargs="+", choices=list(SIZES), default=list(SIZES))
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = words.parse_args(argv)
    torch.set_num_threads(1)
    kept = KeptRows("lattice", args.out, {"seconds": args.seconds, "draws": args.draws})
    references = References(args.kept, kept)
    for name, seed, method in itertools.product(args.lattices, args.seeds, args.methods):
        key = {"lattice": name, "method": method, "seed": seed}
        kept.measured(key, functools.partial(measure, references, **key, seconds=args.seconds, draws=args.draws))
    print(table(kept.rows), references.said(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
