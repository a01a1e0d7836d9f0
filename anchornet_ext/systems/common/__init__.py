"""What all systems share; the systems themselves are the files one folder up."""
