"""prefloop and its peers timed side by side: sizes, material, processes, figures, targets."""
