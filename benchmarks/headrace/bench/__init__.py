"""Load tests of inference servers, and what they say: `headrace bench`."""
