"""Two hosts on one machine, and what a job on them is put through: `python -m tests.hosts.faults`."""
