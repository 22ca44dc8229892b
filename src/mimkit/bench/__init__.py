"""Throughput and memory of a step, throughput of reading, beside peers."""
