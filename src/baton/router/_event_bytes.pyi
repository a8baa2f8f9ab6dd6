"""Signatures of the C++ module (csrc/event_bytes.cpp). TypeError for what is not `bytes`."""

def mentions_error(events: bytes) -> bool:
    """`"error"` or `"abort"` is among the bytes, quotes included, spelt without escapes."""

def cut_marks(events: bytes) -> tuple[bytes, list[int], bytes]:
    """Events up to the last whole mark without their marks, the marks' token ids, and what follows.

    A mark is `: t 15 27` between two blank lines. ValueError if it is anything but decimal numbers
    with one space between them.
    """
