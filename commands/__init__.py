"""The commands of `forebay`, one module each: `configure(parser)` and `run(args, settings)`; `cli.COMMANDS` lists them."""
