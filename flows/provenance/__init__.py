"""Where models come from: what made one, which rows it has seen, and how to make it again."""
