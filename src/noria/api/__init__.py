"""HTTP surfaces, thin: parse, ask the app, render. `gateway` is the data plane, `manage` the keeper's side."""
