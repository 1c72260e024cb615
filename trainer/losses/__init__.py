"""Every loss of the method, one small function each; formulas and sources in the docstrings."""
