"""Synthetic voices with exact mouth targets: text, speech, phoneme times, lip codes."""
