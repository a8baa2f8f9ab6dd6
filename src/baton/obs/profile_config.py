"""What to profile, and where the trace goes: the same options for servers and for a load.

Elsewhere: flags from fields (launch/flags.py).
"""

from dataclasses import dataclass, field
from pathlib import Path

from baton.core.errors import ConfigError


@dataclass(frozen=True)
class ProfileConfig:
    """Without a role all workers are profiled."""

    profile_output: Path | None = field(
        default=None,
        metadata={"help": "write a trace here, for Perfetto and `baton profile summary`"},
    )
    profile_prefill_worker: bool = field(
        default=False, metadata={"help": "profile prefill workers, and none that is not named"}
    )
    profile_decode_worker: bool = field(
        default=False, metadata={"help": "profile decode workers, and none that is not named"}
    )

    def __post_init__(self) -> None:
        for name in ("profile_prefill_worker", "profile_decode_worker"):
            if getattr(self, name) and self.profile_output is None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} needs a file for the trace; add --profile-output trace.json"
                )
        path = self.profile_output
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(
                f"--profile-output {path}: there is no folder {path.parent}; make it first"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """Those that were named; empty: all."""
        named = {"prefill": self.profile_prefill_worker, "decode": self.profile_decode_worker}
        return tuple(role for role, is_named in named.items() if is_named)

    def is_for(self, role: str) -> bool:
        """Whether a worker of that role is profiled."""
        return self.profile_output is not None and (not self.roles or role in self.roles)
