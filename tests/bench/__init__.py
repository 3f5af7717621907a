"""Benchmarks: `make bench`. Never part of the tests, for a machine's speed is not a property of the code."""
