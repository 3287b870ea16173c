"""How to speak to one kind of model endpoint; file name = id = `provider:` in the configuration.

A look-alike vendor is a row in `openai_compatible`, not a file. A provider translates, never retries,
never times: that is the router's. To add one: one file exporting one subclass of `Provider`.
"""
