"""Hostile peers before a running gateway, and a well-behaved one beside them: see ``__main__``."""
