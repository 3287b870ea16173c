"""What a prompt is given to stand on: the conversation so far, later knowledge and entities.

A grounding stage adds messages with their origin; it never edits what the caller wrote.
"""
