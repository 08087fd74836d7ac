"""The quality of evalq's quantizers beside its peers', at equal bits; see README.md here."""
