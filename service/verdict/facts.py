"""What a verdict is judged from: measures of a deployment's window, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.service.verdict.model import Severity
from moescope.service.windows.silence import Silence


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that capture doesn't see, or that doesn't add up."""

    severity: Severity
    words: str


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer over EP ranks, from the window's sums.

    Attributes:
        layer: its id.
        ratio: max / mean of slots over EP ranks.
        rank: the busiest EP rank.
        waiting: max - mean, slots.
        expert: the busiest expert of that rank; None: it isn't known which experts it has.
        expert_over_fair: its slots as a multiple of a fair share.
        expert_part: its slots above a fair share / ``waiting``: what of it goes away without this expert.
    """

    layer: int
    ratio: float
    rank: int
    waiting: float
    expert: int | None = None
    expert_over_fair: float = 0.0
    expert_part: float = 0.0


@dataclass(frozen=True, slots=True)
class Balance:
    """All layers that have a sample; one at least.

    Attributes:
        layers: rising by id.
        ratio: ratio of sums over layers, max / mean.
        ranks: slots of each EP rank over all layers, as a multiple of a fair share.
    """

    layers: tuple[LayerFacts, ...]
    ratio: float
    ranks: tuple[float, ...]

    @property
    def waiting(self) -> float:
        """Share of the time in experts that an average EP rank waits, by the window's sums."""
        return 1.0 - 1.0 / self.ratio


@dataclass(frozen=True, slots=True)
class Steps:
    """Single steps of which the loads of all ranks are known.

    Attributes:
        cost: share of the time in experts that an average EP rank waits for the busiest one of the step.
        joined: how many steps.
        busiest: share of steps x layers in which each EP rank was the busiest.
    """

    cost: float
    joined: int
    busiest: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Dp:
    """Tokens over DP ranks: max / mean, and the rank with the most."""

    ratio: float
    rank: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Drift:
    """How far routing is from a base: medians over layers."""

    base: str
    moved: float
    divergence: float
    noise: float
    new_hot: int
    new_dead: int


@dataclass(frozen=True, slots=True)
class Remedy:
    """What another placement of the experts would do, on loads that it was not fitted on.

    Attributes:
        name: of the placement that is recommended; None: none is.
        redundant: its redundant experts.
        before, after: share of the time in experts that an average EP rank waits, now and with it.
        memory: memory for experts that it takes more, as a share.
        known: whether it is known.
        reason: why none is recommended, or why it isn't known.
    """

    known: bool = True
    name: str | None = None
    redundant: int = 0
    before: float = 0.0
    after: float = 0.0
    memory: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """A deployment in a window; None is not known, or not the case.

    Attributes:
        start, end: the window; ``open_end``: it ends now, so that states of now belong to it.
        tokens: computed; ``tokens_reason`` says why it isn't known.
        seconds, steps: see :class:`moescope.service.verdict.model.Confidence`.
        gaps: what capture doesn't see, the gravest first.
        partial: why the numbers are of a part of the deployment only.
        reporting: DP ranks that are not silent.
        dp: None: fewer than two DP ranks, or not known.
        balance: None for ``balance_reason``.
        in_steps: None: no loads of single steps are known.
        too_little: why the data are too little to judge balance; empty: they are enough.
        remedy: None: nobody asked, since nothing is to be mended.
    """

    server: str
    model: str
    start: float | None
    end: float
    open_end: bool = True
    tokens: int | None = 0
    tokens_reason: str | None = None
    seconds: float = 0.0
    steps: int = 0
    silence: Silence | None = None
    gaps: tuple[Gap, ...] = ()
    partial: str | None = None
    reporting: int = 1
    dp: Dp | None = None
    ep_size: int = 1
    balance: Balance | None = None
    balance_reason: str | None = None
    in_steps: Steps | None = None
    too_little: tuple[str, ...] = ()
    drift: Drift | None = None
    remedy: Remedy | None = None
    caveats: tuple[str, ...] = ()
