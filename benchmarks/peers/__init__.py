"""Other servers, each installed into an environment of its own and given the same model."""
