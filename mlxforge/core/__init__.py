"""Config, events, errors and files: what every other room may import."""
