"""Logs: one line per event, `key=value` fields that a person and a program can both read.

    ts=2026-01-02T03:04:05.678Z level=info component=api logger=baton.api event="request" rid=x-1

Invariant: a record is always exactly one line, whatever a client managed to put into a field.
Elsewhere: figures (metrics.py).
"""

import json
import logging
import re
import sys
import time
from typing import Any, Final, TextIO

from baton.core.errors import ConfigError

ROOT_LOGGER: Final = "baton"
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_FIELDS: Final = "baton_fields"
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9_.:/@+\-\[\]{}*,;%#]+")


def configure_logging(level: str, component: str, stream: TextIO | None = None) -> None:
    """Send everything under the `baton` logger to `stream` (standard error by default).

    `component` names this process in every line ("api", "engine", "router"). Calling it again
    replaces the earlier configuration.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"--log-level {level} is not known; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(OneLineFormatter(component))
    root = logging.getLogger(ROOT_LOGGER)
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


class EventLog:
    """Writes events with fields: `log.info("request finished", rid=rid, status=200)`."""

    def __init__(self, name: str):
        self._logger = logging.getLogger(name)

    @property
    def logger(self) -> logging.Logger:
        return self._logger

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, exc: BaseException | None = None, **fields: Any) -> None:
        """`exc` adds its traceback, folded into the same line."""
        self._write(logging.ERROR, event, fields, exc)

    def _write(
        self, level: int, event: str, fields: dict[str, Any], exc: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, extra={_FIELDS: fields}, exc_info=exc)


def event_log(part: str) -> EventLog:
    """The log of one part of Baton, e.g. `event_log("api")` writes to logger `baton.api`."""
    return EventLog(f"{ROOT_LOGGER}.{part}")


class OneLineFormatter(logging.Formatter):
    """Renders any record, Baton's own or a library's, as one line of `key=value` fields."""

    def __init__(self, component: str):
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        pairs = [
            ("ts", _timestamp(record.created)),
            ("level", record.levelname.lower()),
            ("component", self._component),
            ("logger", record.name),
            ("event", record.getMessage()),
            *getattr(record, _FIELDS, {}).items(),
        ]
        if record.exc_info and record.exc_info[0] is not None:
            pairs.append(("exc", self.formatException(record.exc_info)))
        return " ".join(f"{key}={_render(value)}" for key, value in pairs)


def _timestamp(created_s: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created_s))
    return f"{whole}.{int(created_s * 1000) % 1000:03d}Z"


def _render(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text)
