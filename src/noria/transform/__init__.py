"""What is done to the text of a prompt before a model sees it: normalise, template, fit the window.

A transform takes an Exchange and returns a new one. It does not judge (that is `checks`), does not
look things up (that is `ground`), does not choose a model (that is `gateway`). To add one: a module
with a class that fulfils `contracts.stage.Inward`, and one line in `journeys/prompt.py`.
"""
