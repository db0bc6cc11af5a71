"""Rows of many files brought into the order of their ids, and records into the order of their scores."""
