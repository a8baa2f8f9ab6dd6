"""What reaches the terminal, and in which order."""

import io

from baton.launch.narrator import Narrator


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def _narrator(*, is_verbose: bool = False, is_terminal: bool = False) -> tuple[Narrator, Screen]:
    screen = Screen(is_terminal)
    return Narrator(is_verbose=is_verbose, out=screen, err=screen), screen


def test_lines_wait_until_everything_serves() -> None:
    narrator, screen = _narrator()
    narrator.child_line("w0", "early")
    assert screen.getvalue() == ""
    narrator.ready("all serve")
    narrator.child_line("w0", "late")
    assert screen.getvalue() == "[w0] early\nall serve\n[w0] late\n"


def test_a_failure_shows_the_lines_of_its_child_only() -> None:
    narrator, screen = _narrator()
    narrator.child_line("w0", "mine")
    narrator.child_line("w1", "other")
    narrator.failed("w0", "w0 could not start")
    narrator.failed("w1", "w1 could not start")
    assert screen.getvalue() == "[w0] mine\nw0 could not start\nw1 could not start\n"


def test_verbose_holds_nothing_back() -> None:
    narrator, screen = _narrator(is_verbose=True)
    narrator.child_line("w0", "early")
    assert screen.getvalue() == "[w0] early\n"


def test_progress_is_one_line_that_the_next_line_replaces() -> None:
    narrator, screen = _narrator(is_terminal=True)
    narrator.progress("loading 1 s")
    narrator.progress("loading 2 s")
    narrator.say("done")
    assert screen.getvalue() == "\r\x1b[Kloading 1 s\r\x1b[Kloading 2 s\r\x1b[Kdone\n"


def test_no_progress_into_a_file() -> None:
    narrator, screen = _narrator()
    narrator.progress("loading 1 s")
    assert screen.getvalue() == ""
