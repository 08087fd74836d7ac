"""evalq: which precision of this model can I ship?"""

__all__ = ["__version__"]

__version__ = "0.1.0"
