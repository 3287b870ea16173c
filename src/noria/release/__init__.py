"""Releases: the immutable pins of everything that makes an answer, and how traffic moves between them.

`identity` computes a release id; registry, gate and rollout join it with the model journey.
"""
