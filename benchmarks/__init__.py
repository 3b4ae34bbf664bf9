"""How fast, how much memory, and how far from the machine's own limits: measured beside others in one run."""
