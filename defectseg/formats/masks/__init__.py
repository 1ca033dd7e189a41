"""Masks as pictures, in both directions: class maps, or a picture for each class or region."""
