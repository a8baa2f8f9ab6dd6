"""Fakes, tiny models and conformance suites, for Baton's tests and for those who extend it."""
