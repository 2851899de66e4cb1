"""Natural language to commands: a program's schema, rows that a grammar makes of it, and the way back to a command line."""
