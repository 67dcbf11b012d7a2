"""Commands behind the numbers of the README and the docs; each prints a table, most also write JSON."""
