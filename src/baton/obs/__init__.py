"""Seeing what a process does: figures for Prometheus and one-line structured logs."""
