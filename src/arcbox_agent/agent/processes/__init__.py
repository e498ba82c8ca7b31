"""Child processes and what they are made of."""
