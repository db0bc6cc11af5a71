"""What is read and written: manifests, storage, the output schema, COCO files. No Ray."""
