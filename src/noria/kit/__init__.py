"""Plain tools that know nothing about language models: files, sockets, ids, streams, extension loading.

If a word of the trade (prompt, model, token) wants to come in here, the code belongs one floor up.
"""
