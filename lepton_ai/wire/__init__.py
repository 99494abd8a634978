"""The public client's JSON, and its mapping to our words; one file a resource family. Pure: no I/O, no store.

The shapes follow what the package `leptonai` 0.47 sends and accepts. Times: `created_at` in milliseconds, logs in
nanoseconds, terminations in seconds. What this release does not do is kept, shown back and named in an event
(kept.py), or refused by name where keeping it would deceive; nothing that was asked for is dropped in silence.
"""
