"""What the parts of Noria agree on: frozen data, stage protocols, ports, errors. No I/O, no behaviour."""
