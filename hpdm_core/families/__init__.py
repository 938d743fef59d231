"""Model families behind one protocol, their registry, and weights files."""
