"""Finding stop strings in text that arrives in pieces.

A match is the one that ends first; of several ending there, the longest. So the outcome does not
depend on how the text was cut into pieces.
Invariant: no text is returned that a later piece could turn into part of a stop string; work is
proportional to the text pushed, however many and long the stop strings are (Aho and Corasick,
"Efficient string matching", 1975).
Elsewhere: stop tokens, which the engine matches; where text comes from (detokenize.py).
"""

from collections import deque
from collections.abc import Sequence

from baton.core.errors import RequestError


class _Automaton:
    """State s is the longest suffix of the text that begins a stop string; 0 is the empty one."""

    def __init__(self, stops: Sequence[str]):
        self._children: list[dict[str, int]] = [{}]
        self._fallback: list[int] = [0]
        self.depth: list[int] = [0]
        self.matched: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, character: str) -> int:
        while True:
            following = self._children[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fallback[state]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._children[state].get(character)
            if following is None:
                following = len(self.depth)
                self._children[state][character] = following
                self._children.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.matched.append(None)
            state = following
        self.matched[state] = stop

    def _link(self) -> None:
        """Breadth first, so that a state's fallback is complete before it is needed."""
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            if self.matched[state] is None:
                self.matched[state] = self.matched[self._fallback[state]]
            for character, following in self._children[state].items():
                self._fallback[following] = self.step(self._fallback[state], character)
                queue.append(following)


class StopStringMatcher:
    """Watches one sequence's text. With `include_stop` the matched string itself is returned too
    (SGLang's no_stop_trim)."""

    def __init__(self, stops: Sequence[str], include_stop: bool = False):
        if "" in stops:
            raise RequestError("stop strings must not be empty", param="stop")
        self._automaton = _Automaton(stops) if stops else None
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string that was found or None). After a match
        everything further is dropped."""
        if self._automaton is None:
            return text, None
        if self._matched is not None:
            return "", self._matched
        automaton, state = self._automaton, self._state
        window = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            state = automaton.step(state, character)
            matched = automaton.matched[state]
            if matched is not None:
                return self._finish(window[:position], matched)
        self._state = state
        num_held = 0 if self._include_stop else automaton.depth[state]
        shown = len(window) - num_held
        self._held = window[shown:]
        return window[:shown], None

    def flush(self) -> str:
        """Text held back, now that none follows."""
        held, self._held = self._held, ""
        self._state = 0
        return held

    def _finish(self, window: str, matched: str) -> tuple[str, str]:
        self._matched = matched
        self._held = ""
        return (window if self._include_stop else window.removesuffix(matched)), matched
