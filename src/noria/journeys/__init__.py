"""The two stories, as straight-line code: how a prompt is answered, how a model is made.

Here belongs the order of the steps and nothing else. A journey speaks protocols of
`noria.contracts` and never names a check, a provider or an engine. `prompt` is the first; the
journey of a model joins it when that journey does something.
"""
