"""Wiring: the only place that names concretes; one module a process, and what they share.

`definition` turns settings into the stored definition and the snapshot, `house` turns a snapshot into
the stages of `journeys.prompt`, `worker`, `keeper` and `supervisor` are the three kinds of process.
"""
