"""The `forebay` command line, one module per command."""
