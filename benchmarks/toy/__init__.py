"""A language small enough to enumerate, in which the optimum of every objective is known."""
