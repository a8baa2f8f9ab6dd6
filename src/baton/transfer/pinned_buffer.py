"""The address of memory, for code that copies by address.

Elsewhere: who copies (shm_peer.py, tcp_lane.py, tcp_receiver.py).
"""

import ctypes
import mmap


class PinnedBuffer:
    """The address of a writable buffer, which stays mapped until `release`."""

    def __init__(self, buffer: mmap.mmap):
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(buffer)
        self.address = ctypes.addressof(self._anchor)
        self.num_bytes = len(buffer)

    def release(self) -> None:
        self._anchor = None
