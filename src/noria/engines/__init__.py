"""What is behind the ports: file name = URL scheme. Each module ends with one `ENGINE`.

Code above never asks which engine it has; real differences are capability fields of the engine.
To add one: one file, and the contract suites of the ports it serves run over it by themselves.
"""
