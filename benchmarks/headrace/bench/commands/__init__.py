"""The commands of `headrace bench`: how each is said, and what it does."""
