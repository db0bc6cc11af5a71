"""Files of one folder, each written, read and removed as a whole: on a local disk, on S3, on anything of fsspec's."""
