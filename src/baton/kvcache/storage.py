"""The bytes of the KV pool: one anonymous shared-memory segment, mapped for its lifetime.

A sealed memfd rather than a name under /dev/shm: it is gone when the last process that maps it is
gone, however that process ended, and a peer gets it only by being handed the descriptor.
"""

import contextlib
import fcntl
import mmap
import os


class SharedSegment:
    """Zero-filled shared memory of `num_bytes`, page aligned. Close it, or let the process end."""

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes
        self.fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, num_bytes)
        # Sealed so that a peer cannot shrink it under us and turn our next read into SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self.map = mmap.mmap(self.fd, num_bytes)

    def view(self) -> memoryview:
        """Writable bytes of the whole segment."""
        return memoryview(self.map)

    def close(self) -> None:
        """Unmap and close. Views still alive keep the mapping until they go."""
        with contextlib.suppress(BufferError):
            # While a tensor still views the map it stays; the kernel frees it with the process.
            self.map.close()
        os.close(self.fd)
