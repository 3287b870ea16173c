"""From traffic and files to dataset versions: collect, read, harvest, clean, de-duplicate, label, split, compare, check, export.

Everything here is plain functions over rows; `noria.app.dataset_steps` runs them against the service.
"""
