"""Signatures of the C++ module (csrc/event_bytes.cpp). TypeError for what is not `bytes`."""

def mentions_error(events: bytes) -> bool:
    """`"error"` or `"abort"` is among the bytes, quotes included, spelt without escapes."""
