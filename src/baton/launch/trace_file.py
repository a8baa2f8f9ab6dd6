"""Trace files on disk: read with errors that say what is wrong, written whole or not at all.

Elsewhere: what is in them (obs/chrome_trace.py).
"""

import os
from pathlib import Path

import msgspec

from baton.core.errors import ConfigError
from baton.obs.chrome_trace import Trace


def read_trace(path: Path) -> Trace:
    """Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trace)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no trace of Baton ({error}); make one with --profile-output"
        ) from error


def write_trace(path: Path, content: bytes) -> None:
    """Under another name first, so that no half of a trace is ever found. Raises ConfigError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
