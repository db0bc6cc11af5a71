"""Files of public models, fetched once into a cache."""
