"""Masks as formats want them: crops, rings of polygons, Label Studio's brush."""
