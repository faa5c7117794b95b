"""What runs in a worker process: exactly one client and the loop that feeds it."""
