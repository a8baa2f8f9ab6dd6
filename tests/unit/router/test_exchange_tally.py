"""What is counted cheaply is shown as prometheus_client itself would show it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from baton.router.exchange_tally import SECONDS, ExchangeTally


def lines_of(registry: CollectorRegistry) -> set[str]:
    """But for the times at which prometheus_client's figures were created."""
    text = bytes(generate_latest(registry)).decode()
    return {line for line in text.splitlines() if "_created" not in line}


def test_figures_are_those_of_prometheus_clients_own() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    requests = Counter(
        "baton_router_requests",
        "Requests for tokens that ended; status 499: the client left first.",
        ["route", "status"],
        registry=theirs,
    )
    inflight = Gauge(
        "baton_router_inflight", "Requests for tokens now in the router.", registry=theirs
    )
    ttft = Histogram(
        "baton_router_ttft_seconds",
        "From a request's arrival to the first byte of its answer.",
        ["route"],
        buckets=SECONDS,
        registry=theirs,
    )
    duration = Histogram(
        "baton_router_request_duration_seconds",
        "From a request's arrival to the last byte of its answer.",
        ["route"],
        buckets=SECONDS,
        registry=theirs,
    )
    tally = ExchangeTally()
    ours.register(tally)
    for route, status, seconds in (
        ("/generate", 200, 0.005),
        ("/generate", 200, 0.0051),
        ("/generate", 499, 400.0),
        ("/v1/completions", 503, 0.0),
    ):
        requests.labels(route, str(status)).inc()
        duration.labels(route).observe(seconds)
        tally.note_end(route, status, seconds)
        if status == 200:
            ttft.labels(route).observe(seconds)
            tally.note_first_byte(route, seconds)
    inflight.inc(3)
    tally.num_inflight += 3
    assert lines_of(ours) == lines_of(theirs)
