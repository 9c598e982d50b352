"""How good a model is: bits per byte of documents, and paired comparisons of them."""
