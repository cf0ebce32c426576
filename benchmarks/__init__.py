"""Benchmarks: protocols, methods, results as JSON. Not tests; see each module's docstring for its command."""
