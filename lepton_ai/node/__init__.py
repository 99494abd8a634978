"""One machine's part of a cell: an agent that runs replicas, and the shim that owns each of them."""
