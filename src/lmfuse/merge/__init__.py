"""Several models of one architecture become one, weight by weight. Settings (``linear``, ``sce``, ...) load without torch; no file is read here."""
