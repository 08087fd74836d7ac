"""The verb serve: an OpenAI-compatible endpoint over evalq's own engine, of a precision known."""
