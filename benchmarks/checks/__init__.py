"""What is run to see that the project is right: each module is a program whose exit code is 1 where it is not.

May import `pipeline`, `jobs` and the rest of `benchmarks`; `house` keeps to the standard library.
"""
