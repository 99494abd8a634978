"""One file a schema revision, never edited after its release."""
