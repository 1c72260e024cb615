"""The stages of the method: flat loops that differ between configurations in their recipe only."""
