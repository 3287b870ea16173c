"""Checks observe, guards act: run a policy of checks on an Exchange and do what the policy says.

`chain` runs checks inward, `stream` outward, `action` is the only place where text is masked or an
answer refused. A judgement itself belongs to `noria.checks`.
"""
