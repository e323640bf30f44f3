"""What `soak.py` is made of: a server with faults on demand, callers who check, and the faults."""
