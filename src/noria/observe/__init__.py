"""From traffic to signals: what is recorded of an exchange, and what can be asked of the record."""
