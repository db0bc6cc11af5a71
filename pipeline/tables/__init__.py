"""Arrow columns as arrays: types, ids, binary values, ragged lists. Knows nothing of what the columns mean."""
