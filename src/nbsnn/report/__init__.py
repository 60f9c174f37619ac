"""A report: one network or run as figures with provenance, and as one HTML file to open, send and print."""
