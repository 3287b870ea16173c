"""Across both journeys: access, policy, audit, lineage, privacy. Consulted at gates, imported by neither journey."""
