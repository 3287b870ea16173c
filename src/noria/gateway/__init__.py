"""Choose the model and reach it: admission, limits, weights, ordered fallback, commit of a stream.

Nothing here knows a vendor (that is `providers`) or a wire format (that is `dialects`).
"""
