import os
import queue
import threading

import pytest

from baton.transfer.io_loop import READABLE, IoLoop

WAIT_S = 20.0


class Recorder:
    def __init__(self, fd: int, raises: bool = False):
        self.fd = fd
        self.raises = raises
        self.seen: queue.Queue[object] = queue.Queue()

    def on_ready(self, mask: int) -> None:
        self.seen.put(os.read(self.fd, 100))
        if self.raises:
            raise RuntimeError("a bug of the handler")

    def on_bug(self, error: Exception) -> None:
        self.seen.put(error)
        raise RuntimeError("a bug on top of it")


def test_calls_run_in_order_on_its_own_thread() -> None:
    loop = IoLoop("test")
    seen: list[int] = []
    threads: list[threading.Thread] = []
    for number in range(100):
        loop.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.run(lambda: threads.append(threading.current_thread()))
    assert seen == list(range(100))
    assert threads != [threading.current_thread()]
    loop.stop()
    loop.stop()
    assert not loop.submit(lambda: None)
    loop.run(lambda: seen.append(-1))
    assert seen == list(range(100))


def test_handlers_timers_and_bugs(caplog: pytest.LogCaptureFixture) -> None:
    loop = IoLoop("test")
    read_fd, write_fd = os.pipe()
    recorder = Recorder(read_fd, raises=True)
    loop.run(lambda: loop.register(read_fd, READABLE, recorder))
    os.write(write_fd, b"hello")
    assert recorder.seen.get(timeout=WAIT_S) == b"hello"
    assert isinstance(recorder.seen.get(timeout=WAIT_S), RuntimeError)

    def raise_error() -> None:
        raise RuntimeError("a bug of a call")

    order: queue.Queue[str] = queue.Queue()
    loop.submit(raise_error)
    loop.submit(lambda: loop.call_later(0.02, lambda: order.put("second")))
    loop.submit(lambda: loop.call_later(0.0, lambda: order.put("first")))
    assert [order.get(timeout=WAIT_S) for _ in range(2)] == ["first", "second"]
    loop.run(lambda: loop.unregister(read_fd))
    loop.stop()
    os.close(read_fd)
    os.close(write_fd)
    assert "a bug of a call" in caplog.text
