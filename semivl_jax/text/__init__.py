"""Class names and definitions, the CLIP tokenizer, text embeddings."""
