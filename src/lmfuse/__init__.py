"""Make one language model out of several, whatever their tokenizers."""

__version__ = "0.1.0"
