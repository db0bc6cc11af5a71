"""Many small reads of images by URI: with a deadline, a limit of bytes, retries, and the access policy."""
