"""Talking faces nobody owns: stills fitted with a 3-D head and drawn again, moved exactly."""
