"""The vocabulary of a cell: frozen pydantic models without I/O. See DESIGN's words; one file a noun."""
