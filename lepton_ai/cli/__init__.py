"""The `lepton` command: grammar only. Each command is one call on `client` or `cloud`, and prints what came back."""
