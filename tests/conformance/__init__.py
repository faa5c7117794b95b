"""Whether a client program keeps to SPEC.md: see its chapter 3."""
