"""Models: one decoder for the Llama family, its configuration, and loading its weights."""
