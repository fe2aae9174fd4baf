"""Workers: their collectives, shares, cores and devices."""
