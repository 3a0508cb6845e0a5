"""The process that a tool runs in: its ends, signals, memory, seeds, number formats and fellows."""
