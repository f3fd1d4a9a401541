"""The read side: which block is where, and why."""
