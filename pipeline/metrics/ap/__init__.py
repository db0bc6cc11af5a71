"""Average precision, equal to pycocotools to the last bit: matching, records, accumulation, figures."""
