"""The knowledge base: documents in chunks in one SQLite file, and training data made from them."""
