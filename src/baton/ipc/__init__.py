"""Typed messages between processes: api process to engine process, and engine to engine."""
