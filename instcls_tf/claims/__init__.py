"""The paper's claims, the runs that try them, and what those runs have found."""
