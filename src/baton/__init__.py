"""Baton: large language models served with prefill and decode on separate workers."""

from importlib.metadata import version

__version__ = version("baton")
