"""How far the student is from the truth and from its teacher. The settings (``kl``, ``chunk_likelihood``, ...) load without torch."""
