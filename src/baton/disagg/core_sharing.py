"""How a decode worker leaves cores to a prefill worker on the same host.

While prompts are computed for it, decode works on fewer threads and rests between its steps, so
that prompts are read sooner; what rests is bounded, so that streams flow evenly. While none are,
the cores are its own.
Invariant: none of it shows in a result, only in time.
Elsewhere: prefill's side is the scheduling niceness that `baton serve` gives it
(launch/topology.py), the figures are in docs/experiments.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

from baton.core.errors import ConfigError


@dataclass(frozen=True)
class SharingRules:
    """What holds while prompts are computed. `num_threads`: of a step; None: all. `share`: of the
    time that may be spent in steps. `longest_rest_s`: after which the next one begins anyway."""

    num_threads: int | None = None
    share: float = 1.0
    longest_rest_s: float = 0.02

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"--shared-threads {self.num_threads} is below 1")
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(
                f"--shared-time {self.share:g} is not above 0 and at most 1; it is decode's share "
                "of the time while prompts are computed"
            )
        if not self.longest_rest_s >= 0.0:
            raise ConfigError(
                f"--shared-rest-ms {1000 * self.longest_rest_s:g} is negative; use 0 or more"
            )


class CoreSharing:
    """When the next step may begin, and on how many threads. `limit_threads` sets the latter; None
    where the number cannot be changed."""

    def __init__(
        self,
        rules: SharingRules,
        num_threads: int,
        limit_threads: Callable[[int], None] | None,
    ):
        self._rules = rules
        self._limit_threads = limit_threads
        self._threads = num_threads
        self._shared_threads = min(num_threads, rules.num_threads or num_threads)
        self._last_threads = num_threads
        self._rested_s = 0.0

    @property
    def share(self) -> float:
        """Of the time, while prompts are computed."""
        return self._rules.share

    def wait_s(self, now_s: float, prompts_are_computed: bool) -> float:
        """Until the next step may begin; 0 if it is time."""
        return max(0.0, self._rested_s - now_s) if prompts_are_computed else 0.0

    def begin_step(self, prompts_are_computed: bool) -> None:
        num_threads = self._shared_threads if prompts_are_computed else self._threads
        if num_threads != self._last_threads and self._limit_threads is not None:
            self._limit_threads(num_threads)
            self._last_threads = num_threads

    def end_step(self, began_s: float, now_s: float) -> None:
        """A step of length t is followed by a rest of t (1 - share) / share."""
        share = self._rules.share
        rest_s = (now_s - began_s) * (1.0 - share) / share
        self._rested_s = now_s + min(rest_s, self._rules.longest_rest_s)
