"""Entry points: reads argv and environment, builds the parts, wires them together."""
