"""The console: serves the built front end of `ui/` (static files, content security policy, login)."""
