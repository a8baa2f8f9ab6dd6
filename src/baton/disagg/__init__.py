"""Prefill and decode on separate workers: the roles, their hand-over, the bootstrap server."""
