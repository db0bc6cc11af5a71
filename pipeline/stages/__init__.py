"""The steps that Ray maps over the manifest. Plain callables from Arrow table to Arrow table; no Ray in here.

Every stage gives one row for each row it gets. A row that failed carries its error on and is left alone.
"""
