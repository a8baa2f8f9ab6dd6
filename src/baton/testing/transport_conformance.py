"""What every `KvTransport` must do, as checks that run on each backend.

    @pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
    def test_my_backend(check): check(make_my_transport)

`make(segment)` builds a transport over a segment; `REMOTE_CHECKS` take `(make, backend)` and use
other processes; `HOST_CHECKS` take a backend's name and two hosts. Checks ask only what the
capability flags promise.

Invariant: a check leaves no thread, descriptor or process behind, and waits for events with a
deadline, never for a fixed time.
Elsewhere: the checks themselves (transport_checks/), the contract in words (transfer/protocol.py),
each backend's own tests.
"""

from collections.abc import Callable

from baton.testing.network_hosts import NetworkHost
from baton.testing.transport_checks import bytes as exact
from baton.testing.transport_checks import hosts, processes, windows
from baton.testing.transport_checks.sides import MakeTransport

TRANSPORT_CHECKS: tuple[Callable[[MakeTransport], None], ...] = (
    exact.check_exact_bytes_of_odd_ranges,
    exact.check_empty_write_is_done,
    exact.check_one_block,
    exact.check_thousands_of_scattered_blocks,
    exact.check_the_whole_region_at_once,
    exact.check_later_writes_win,
    exact.check_completion_in_posting_order,
    exact.check_concurrent_threads_and_peers,
    exact.check_both_directions,
    exact.check_outside_of_the_regions_is_refused,
    windows.check_bad_windows_are_refused,
    windows.check_only_open_windows_are_written,
    windows.check_a_closed_window_is_a_fence,
    windows.check_cancel,
    windows.check_cancel_before_it_began,
    windows.check_cancel_while_bytes_arrive,
    windows.check_cancel_after_it_is_done,
    windows.check_peer_close_settles_everything,
    windows.check_transport_close_settles_everything,
    windows.check_the_owner_closing_fails_the_writer,
    windows.check_live_writers,
    windows.check_a_stranger_is_refused,
    windows.check_completion_callback_and_counters,
    windows.check_a_raising_callback_harms_nobody,
    windows.check_nothing_is_left_behind,
)

REMOTE_CHECKS: tuple[Callable[[MakeTransport, str], None], ...] = (
    processes.check_another_process,
    processes.check_a_killed_owner_fails_its_writers,
    processes.check_a_hung_owner_can_be_left,
    processes.check_a_slow_peer_holds_up_nobody,
    processes.check_a_large_write_holds_up_no_other_queue,
    processes.check_a_killed_writer_writes_nothing_more,
    processes.check_a_writer_that_was_stopped,
    processes.check_a_stopped_writer_that_is_killed,
    processes.check_an_owner_that_was_stopped,
    processes.check_a_restarted_owner_is_not_taken_for_the_old_one,
)

HOST_CHECKS: tuple[Callable[[str, NetworkHost, NetworkHost], None], ...] = (
    hosts.check_a_short_cut,
    hosts.check_a_long_cut,
)
