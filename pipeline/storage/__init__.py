"""Where bytes lie: URIs, file systems, listings, and files written whole or not at all.

Knows no manifest, no output and no image. Of the package it imports `pipeline.errors` and `pipeline.messages`.
"""
