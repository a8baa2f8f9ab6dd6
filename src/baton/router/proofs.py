"""Challenges of this router, and which announcements it has heard already. Pure but for chance.

A challenge is good for one rotation at least and three at most. What was signed for an older one is
void, so only the numbers of those who spoke since need to be remembered.
Elsewhere: the signature (messages/announcement.py), what follows (announcements.py).
"""

import secrets
from typing import Final

ROTATION_S: Final = 30.0


class Proofs:
    def __init__(self, now_s: float):
        self._current = _drawn()
        self._previous = _drawn()
        self._rotated_s = now_s
        self._heard: dict[str, tuple[int, float]] = {}

    def challenge(self, now_s: float) -> str:
        """To be answered by the next announcement."""
        age_s = now_s - self._rotated_s
        if age_s >= ROTATION_S:
            self._previous = self._current if age_s < 2 * ROTATION_S else _drawn()
            self._current = _drawn()
            self._rotated_s = now_s
            self._forget_before(now_s - 2 * ROTATION_S)
        return self._current

    def is_ours(self, challenge: str, now_s: float) -> bool:
        """Whether it was drawn here, lately."""
        return challenge in (self.challenge(now_s), self._previous)

    def is_new(self, instance: str, number: int, now_s: float) -> bool:
        """Whether a process says this for the first time, after all that it said before. Asked
        only of what is signed, so that strangers fill no memory."""
        last, _ = self._heard.get(instance, (0, 0.0))
        if number <= last:
            return False
        self._heard[instance] = (number, now_s)
        return True

    def _forget_before(self, oldest_s: float) -> None:
        self._heard = {key: heard for key, heard in self._heard.items() if heard[1] >= oldest_s}

    @property
    def num_remembered(self) -> int:
        return len(self._heard)


def _drawn() -> str:
    return secrets.token_hex(16)
