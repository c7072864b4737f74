"""Benchmarks: load, stubs and peers, each in its own process. Nothing here is part of the product."""
