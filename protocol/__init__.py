"""What crosses a process boundary: messages, codec, state tables, errors. Pure, no I/O."""
