"""Where bytes lie: URIs, file systems, listings, and files written whole or not at all.

Knows no manifest, no output and no image. Imports `pipeline.errors` and nothing else of the package.
"""
