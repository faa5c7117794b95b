"""What runs in the caller's process: it spawns, watches, replaces and feeds workers."""
