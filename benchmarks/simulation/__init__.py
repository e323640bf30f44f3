"""The scheduling simulator: workloads, an engine, the rules compared, and the report."""
