"""The command line: parse, build a config, call a run. Thin, and importing nothing heavy."""
