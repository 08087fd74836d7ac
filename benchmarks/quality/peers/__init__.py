"""One script a peer, each run in that peer's own environment; they import nothing of evalq."""
