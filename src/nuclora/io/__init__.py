"""Reading and writing what leaves nuclora: label maps."""
