"""`visavis bench`: a headless client that measures a server from outside. See DESIGN.md.

Nothing is imported here, so that `serve` does not load what only a measurement needs.
"""
