"""Methods that let several models write one text without training: candidates and what the models make of them in, a choice out."""
