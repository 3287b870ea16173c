"""From a candidate to evidence: suites, paired comparisons, reports, always with intervals.

Nothing lives here yet; the model journey brings its first modules.
"""
