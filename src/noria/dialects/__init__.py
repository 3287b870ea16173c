"""Wire formats, pure: bytes in, values out, no I/O. Used on both sides of Noria (clients and providers)."""
