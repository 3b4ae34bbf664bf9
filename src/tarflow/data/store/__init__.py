"""Images of one size, decoded once, in files that are mapped into memory: what is larger than it is read from here."""
