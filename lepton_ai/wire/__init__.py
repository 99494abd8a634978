"""The public client's JSON, and its mapping to our words; one file a resource family. Pure: no I/O, no store.

The shapes follow what the package `leptonai` 0.47 sends and accepts. Times: `created_at` in milliseconds, logs in
nanoseconds, terminations in seconds. What this release cannot do is refused by name, never silently dropped.
"""
