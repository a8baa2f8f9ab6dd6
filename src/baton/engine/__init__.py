"""One rank's engine: which sequences run in a step, the step itself, and the next tokens."""
