"""Log lines: one event, one line."""

import io
import logging
from collections.abc import Iterator

import pytest

from baton.core.errors import ConfigError
from baton.obs.logs import ROOT_LOGGER, configure_logging, event_log


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger(ROOT_LOGGER)
    before = (list(root.handlers), root.level, root.propagate)
    stream = io.StringIO()
    configure_logging("info", "api", stream)
    yield stream
    root.handlers[:], root.level, root.propagate = before[0], before[1], before[2]
    root.setLevel(before[1])


def test_an_event_with_fields(lines: io.StringIO) -> None:
    event_log("api").info("request", rid="r-1", seconds=0.25, ok=True, text="a b", n=3)
    line = lines.getvalue()
    assert line.startswith("ts=20")
    assert line.endswith(
        " level=info component=api logger=baton.api event=request"
        ' rid=r-1 seconds=0.25 ok=true text="a b" n=3\n'
    )


def test_nothing_a_client_sends_breaks_the_line(lines: io.StringIO) -> None:
    event_log("api").warning("odd", text='x\ny="z" \x00\x1b[31m\u2028', empty="")
    text = lines.getvalue()
    assert text.count("\n") == 1
    assert '"x\\ny=\\"z\\" \\u0000\\u001b[31m\\u2028"' in text
    assert 'empty=""' in text


def test_levels(lines: io.StringIO) -> None:
    log = event_log("api")
    log.debug("hidden")
    assert lines.getvalue() == ""
    configure_logging("debug", "engine", lines)
    log.debug("shown")
    assert lines.getvalue().count("shown") == 1
    assert "component=engine" in lines.getvalue()
    with pytest.raises(ConfigError, match="--log-level loud"):
        configure_logging("loud", "api")


def test_a_traceback_stays_on_the_line(lines: io.StringIO) -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        event_log("api").error("failed", exc=error)
    assert lines.getvalue().count("\n") == 1
    assert "KeyError: 'lost'" in lines.getvalue()


def test_other_loggers_below_the_root_are_rendered_too(lines: io.StringIO) -> None:
    logging.getLogger("baton.api.http").error("value %d", 7)
    assert 'event="value 7"' in lines.getvalue()
