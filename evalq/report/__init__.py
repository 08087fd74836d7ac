"""Reports of stored runs: one HTML file, figures, tables and summaries. Never loads a model."""
