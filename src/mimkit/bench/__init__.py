"""Throughput and memory of a training step, and throughput of reading, compared with other libraries."""
