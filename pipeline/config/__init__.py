"""How a job's settings are declared, read and refused: the base of all sections, the YAML loader, the images section.

Each job's own settings stand in its room. Imports `pipeline.storage` and `pipeline.errors`; neither Ray nor torch.
"""
