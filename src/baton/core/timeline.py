"""Where a request spent its time in one process: phases that follow each other without a gap.

A timeline is kept for every request, profiled or not, so it is a few timestamps: `enter` ends the
phase before, and whoever knows why a phase may last says so in `why`.
Invariant: phases are in order of time, and together they last as long as the request.
Elsewhere: the last ones of a process (obs/recent.py), spans of a trace (obs/chrome_trace.py).
"""

import time

import msgspec

MAX_CHUNKS = 64
"""Of one prompt that are told apart; what is read after them counts to the last one."""


class Phase(msgspec.Struct, array_like=True, gc=False):
    name: str
    start_s: float
    why: str = ""


class Chunk(msgspec.Struct, array_like=True, gc=False):
    """`num_tokens` of the prompt, computed in one step of `num_sequences` sequences."""

    start_s: float
    end_s: float
    num_tokens: int
    num_sequences: int


class Timeline(msgspec.Struct, kw_only=True):
    """Times are the monotonic clock's. `pair`: what both legs of a hand-over share, "" without one.
    `end_s` is None while the request runs; `outcome` is how it ended. `samples`: in an api process,
    the ids of its sequences in the engine."""

    request_id: str
    phases: list[Phase]
    pair: str = ""
    chunks: list[Chunk] = []
    end_s: float | None = None
    outcome: str = ""
    samples: list[str] = []
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0

    @staticmethod
    def begin(request_id: str, phase: str, now_s: float, why: str = "") -> "Timeline":
        return Timeline(request_id=request_id, phases=[Phase(phase, now_s, why)])

    @property
    def start_s(self) -> float:
        return self.phases[0].start_s

    def enter(self, phase: str, now_s: float, why: str = "") -> None:
        """The phase before ends here; one that has lasted no time never was."""
        if self.phases[-1].start_s == now_s:
            self.phases.pop()
        self.phases.append(Phase(phase, now_s, why))

    def computed(self, start_s: float, end_s: float, num_tokens: int, num_sequences: int) -> None:
        """A piece of the prompt was computed."""
        if len(self.chunks) < MAX_CHUNKS:
            self.chunks.append(Chunk(start_s, end_s, num_tokens, num_sequences))
            return
        last = self.chunks[-1]
        last.end_s = end_s
        last.num_tokens += num_tokens

    def end(self, now_s: float, outcome: str) -> None:
        self.end_s, self.outcome = now_s, outcome

    def spans(self, now_s: float) -> list[tuple[str, float, float, str]]:
        """(phase, start, end, why) of every phase; the last of a running request ends now."""
        phases = list(self.phases)  # a thread may ask while the request goes on
        last_s = now_s if self.end_s is None else self.end_s
        ends = [phase.start_s for phase in phases[1:]] + [last_s]
        return [
            (phase.name, phase.start_s, end_s, phase.why)
            for phase, end_s in zip(phases, ends, strict=True)
        ]


class ClockFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to lay the clocks of two processes over each other. Processes of one boot share
    the monotonic clock; those of two hosts have their wall clocks, as far as these agree."""

    boot_id: str
    wall_offset_s: float
    """Wall time minus monotonic time."""

    @staticmethod
    def read() -> "ClockFacts":
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot_id = file.read().strip()
        except OSError:
            boot_id = ""
        return ClockFacts(boot_id=boot_id, wall_offset_s=time.time() - time.monotonic())

    def ahead_of(self, other: "ClockFacts") -> float:
        """What to add to a time of `other` to have it on this clock."""
        if self.boot_id and self.boot_id == other.boot_id:
            return 0.0
        return other.wall_offset_s - self.wall_offset_s
