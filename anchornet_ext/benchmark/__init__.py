"""How fast it is on this machine: `anchornet bench`, its suites and their files."""
