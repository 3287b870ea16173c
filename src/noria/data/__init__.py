"""From traffic and files to dataset versions: collect, clean, de-duplicate, label, version.

Nothing lives here yet; the model journey brings its first modules.
"""
