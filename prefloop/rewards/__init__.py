"""What scores a response."""
