"""The command line, thin: parse, ask the app or the running service, render. One module per noun."""
