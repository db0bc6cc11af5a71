"""The output of the annotate job, for all who read or write it: its schema, its data files, run.json, its pictures.

The output is the ledger of what is done. Imports the floors below (`storage`, `tables`, `model`, `config`), and no job.
"""
