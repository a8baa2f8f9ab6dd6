"""Ops for models: the interface, and the readable torch reference."""
