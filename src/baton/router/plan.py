"""Where a request goes and why, as one small record; and how a client and a log read it.

A plan is made with every attempt, so it holds only what the choice had anyway; texts are made of it
where somebody reads them.
Elsewhere: making plans (placement.py), the request's life around it (exchange.py).
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec

from baton.router.split import SplitReason
from baton.router.workers import Worker

if TYPE_CHECKING:
    from baton.router.exchange import Exchange

ROUTE_HEADER: Final = "X-Baton-Route"
QUEUE_WAIT_HEADER: Final = "X-Baton-Queue-Wait"


class Plan(msgspec.Struct, frozen=True, gc=False):
    """One worker, or prefill and decode, each with the reason of its policy. `split_reason` None:
    there was no choice between the two ways."""

    workers: list[Worker]
    policy_reasons: tuple[str, ...]
    split_reason: SplitReason | None = None

    @property
    def placement(self) -> str:
        return "whole" if len(self.workers) == 1 else "split"


def route_text(plan: Plan, with_workers: bool) -> str:
    """The header's value; workers' URLs are not for everyone."""
    parts = [plan.placement]
    if plan.split_reason is not None:
        parts.append(f"reason={plan.split_reason.value}")
    if with_workers:
        for worker, why in zip(plan.workers, plan.policy_reasons, strict=True):
            parts += [f"{worker.role.value}={worker.url}", f"{worker.role.value}-reason={why}"]
    return "; ".join(parts)


def route_fields(exchange: "Exchange") -> dict[str, Any]:
    """For a line of the log: what is known by then."""
    fields: dict[str, Any] = {}
    if exchange.waited_s > 0:
        fields["waited_s"] = round(exchange.waited_s, 3)
    if exchange.num_resumes:
        fields["num_resumes"] = exchange.num_resumes
    plan = exchange.plan
    if plan is not None:
        fields["placement"] = plan.placement
        if plan.split_reason is not None:
            fields["placement_reason"] = plan.split_reason.value
        for worker, why in zip(plan.workers, plan.policy_reasons, strict=True):
            fields[worker.role.value] = worker.url
            fields[f"{worker.role.value}_reason"] = why
    return fields
