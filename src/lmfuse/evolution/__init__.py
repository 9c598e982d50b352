"""The search for the best child of several models: who is judged on what, in which order, and what survives a crash."""
