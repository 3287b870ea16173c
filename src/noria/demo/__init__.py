"""`noria demo`: one turn of the whole wheel on a help desk that we wrote ourselves, narrated.

The service is the real one and is driven over HTTP like by anybody; only the customers are played, from labelled messages.
"""
