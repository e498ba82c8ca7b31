"""Benchmarks in pairs: each work beside its rival, in the same run.  See README.md."""
