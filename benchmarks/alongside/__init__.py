"""The library and a peer trained side by side: rows, material, either side, the table."""
