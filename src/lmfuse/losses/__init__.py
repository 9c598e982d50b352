"""How far the student is from the truth and from its teacher. The settings (``kl``, ``cross_entropy``) load without torch."""
