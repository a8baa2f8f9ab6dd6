"""Is the other side still there? Pure: the caller says what was heard and what time it is.

Elsewhere: sending heartbeats and acting on the verdict (peer_link.py).
"""


class HeartbeatMonitor:
    """The other side is lost after `max_missed` intervals without a word of any kind.

    Time in which this side itself did not look does not count: a process that was stopped for a
    minute finds a minute of unread heartbeats, and must not call everybody dead before reading.
    """

    def __init__(self, interval_s: float, max_missed: int, now_s: float):
        self._interval_s = interval_s
        self._max_missed = max_missed
        self._last_heard_s = now_s
        self._last_check_s = now_s

    def heard(self, now_s: float) -> None:
        self._last_heard_s = now_s

    def silent_s(self, now_s: float) -> float:
        return now_s - self._last_heard_s

    def check_lost(self, now_s: float) -> bool:
        """To be called about once per interval."""
        blind_s = now_s - self._last_check_s - self._interval_s
        if blind_s > self._interval_s:
            self._last_heard_s = min(now_s, self._last_heard_s + blind_s)
        self._last_check_s = now_s
        return self.silent_s(now_s) > self._max_missed * self._interval_s
