"""What would run, and why: decided before anything starts, from the keys that DVC keeps."""
