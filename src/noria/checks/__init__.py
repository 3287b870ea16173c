"""One judgement a file; file name = id = the name in a guard policy.

A check looks at text and returns a Verdict with spans. It never changes anything, so the same file
serves as guard inline, as metric on a dataset and as monitor on sampled traffic. To add one: one file
exporting one subclass of `Check`.
"""
