"""Scenarios: the pieces of work whose costs become rows.  Each module has one ``run(bench)``."""
