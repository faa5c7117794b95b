"""The clients that come with Soloist; others join through the entry points ``soloist.clients``."""
