"""Second moments of a layer, and what follows from them: expressivity bottleneck, effective rank.

With ``a`` the input of a layer (a 1 appended where it has a bias) and ``g`` the gradient of an
example's loss with respect to the layer's output, the change of the output that would help most is
``v = -g``. New weights ``D`` change the output by ``D a``; the part of ``v`` that no ``D`` gives is

    bottleneck = min over D of E |v - D a|^2 = E|g|^2 - tr(C^T A^-1 C),  A = E[a a^T], C = E[a g^T]

(Verbockhaven, Rudkiewicz, Charpiat, Chevallier: *Growing Tiny Networks: Spotting Expressivity
Bottlenecks and Fixing Them Optimally*, TMLR 2024, section 3). A regression on ``n`` rows explains
part of ``v`` by chance; the residual is divided by ``1 - freedom / n``, with the ridge's degrees of
freedom ``tr(A (A + r I)^-1)``, as for the unbiased variance of a regression's residuals.

The effective rank of what a layer reads is ``(sum l)^2 / sum l^2`` over the eigenvalues ``l`` of
its covariance (Bartlett, Long, Lugosi, Tsigler: *Benign overfitting in linear regression*, 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SKETCH = 64
"""Features of a layer without weights beyond which its covariance is sketched."""

_SPARE = 0.1
"""Fraction of the rows that the weights must leave free for their residual to mean anything."""


@dataclass(frozen=True)
class Bottleneck:
    """``wanted`` is ``E|g|^2`` over rows; ``unreachable`` the fraction of it that the layer's own
    weights cannot give: not a number where there are too few rows to tell."""

    wanted: float
    unreachable: float


class Moments:
    """Sums over rows of one layer with weights, kept on its device.

    ``memory`` is the weight of everything older whenever rows are added: 1 keeps all. Adding waits
    for nothing; reading does.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        constant: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory: float = 1.0,
    ) -> None:
        self._constant = constant
        self._memory = memory
        self._second = torch.zeros(inputs + 1, inputs + 1, dtype=dtype, device=device)
        self._cross = torch.zeros(inputs + 1, outputs, dtype=dtype, device=device)
        self._square = torch.zeros((), dtype=dtype, device=device)
        self._rows = 0.0
        self._squared_rows = 0.0

    def add(self, inputs: Tensor, gradient: Tensor) -> None:
        """Add rows: ``inputs`` ``[n, inputs]`` and the gradients ``[n, outputs]`` that belong to
        them, scaled to single examples."""
        kept, rows = self._memory, inputs.shape[0]
        dtype = self._second.dtype
        a = torch.cat([inputs.to(dtype), inputs.new_ones((rows, 1), dtype=dtype)], dim=1)
        g = gradient.to(dtype)
        self._second.addmm_(a.t(), a, beta=kept)
        self._cross.addmm_(a.t(), g, beta=kept)
        self._square.mul_(kept).add_(g.square().sum())
        self._rows = kept * self._rows + rows
        self._squared_rows = kept**2 * self._squared_rows + rows

    @property
    def rows(self) -> float:
        """The effective number of rows: less than their count where old ones fade."""
        return self._rows**2 / self._squared_rows if self._rows else 0.0

    def bottleneck(self) -> Bottleneck:
        """See the module's docstring."""
        if not self._rows:
            return Bottleneck(math.nan, math.nan)
        second, cross, square = self._second, self._cross, self._square.double() / self._rows
        if not self._constant:
            second, cross = second[:-1, :-1], cross[:-1]
        wanted = float(square)
        # Features of unit size: the ridge then means the same for all of them.
        size = (second.diagonal().double() / self._rows).sqrt()
        scale = torch.where(size > 0, 1.0 / size, torch.zeros_like(size))
        unit = second.double() / self._rows * scale * scale[:, None]
        target = cross.double() / self._rows * scale[:, None]
        if not (wanted > 0.0 and math.isfinite(wanted) and bool(unit.isfinite().all())):
            return Bottleneck(wanted, math.nan)
        features = len(unit)
        ridge = 4.0 * torch.finfo(second.dtype).eps * features
        unit.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(unit)
        reached = torch.linalg.solve_triangular(factor, target, upper=False).square().sum()
        identity = torch.eye(features, dtype=torch.float64, device=unit.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        freedom = features - ridge * float(inverse.square().sum())
        left = 1.0 - freedom / self.rows
        if left < _SPARE:
            return Bottleneck(wanted, math.nan)
        missed = max(0.0, 1.0 - float(reached) / wanted) / left
        return Bottleneck(wanted, min(1.0, missed))

    def effective_rank(self) -> float:
        """Of what the layer reads; at most the number of features, and of rows less one."""
        if not self._rows:
            return math.nan
        return _participation(_covariance(self._second, self._rows))


class Spread:
    """The covariance of the features that a layer without weights reads, sketched where there are
    more than ``SKETCH``: products with fixed Gaussian vectors ``w`` have ``E (w' S v)^2 = tr S^2``
    and ``E w' S w = tr S``, so the effective rank is not bounded by their number."""

    def __init__(
        self,
        features: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory: float = 1.0,
    ) -> None:
        self._memory = memory
        self._vectors: Tensor | None = None
        if features > SKETCH:
            generator = torch.Generator().manual_seed(features)
            vectors = torch.randn(features, SKETCH, generator=generator, dtype=torch.float64)
            self._vectors = vectors.to(device, dtype)
        width = min(features, SKETCH) + 1
        self._second = torch.zeros(width, width, dtype=dtype, device=device)
        self._rows = 0.0

    def add(self, inputs: Tensor) -> None:
        """Add rows ``[n, features]``."""
        dtype = self._second.dtype
        x = inputs.to(dtype) if self._vectors is None else inputs.to(dtype) @ self._vectors
        x = torch.cat([x, x.new_ones((len(x), 1))], dim=1)
        self._second.addmm_(x.t(), x, beta=self._memory)
        self._rows = self._memory * self._rows + len(x)

    def effective_rank(self) -> float:
        """See the module's docstring."""
        if not self._rows:
            return math.nan
        covariance = _covariance(self._second, self._rows)
        if self._vectors is None:
            return _participation(covariance)
        diagonal = covariance.diagonal()
        pairs = SKETCH * (SKETCH - 1)
        squares = float(covariance.square().sum() - diagonal.square().sum()) / pairs
        trace = float(diagonal.mean())
        return trace**2 / squares if squares > 0.0 else _flat_rank(trace)


def _covariance(second: Tensor, rows: float) -> Tensor:
    """From sums of products, the last of them with 1."""
    moment = second.double() / rows
    mean = moment[:-1, -1]
    return moment[:-1, :-1] - torch.outer(mean, mean)


def _participation(covariance: Tensor) -> float:
    squares = float(covariance.square().sum())
    trace = float(covariance.diagonal().sum())
    return trace**2 / squares if squares > 0.0 else _flat_rank(trace)


def _flat_rank(trace: float) -> float:
    """Of features that do not vary, and of those that are not finite."""
    return 0.0 if trace == 0.0 else math.nan
