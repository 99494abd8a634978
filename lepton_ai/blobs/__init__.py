"""Bytes by digest: a local store, and fetching with verification."""
